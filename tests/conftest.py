"""One server for all tests that do not end it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support.server import Server, serving

# tests and servers share few cores: threads that wait for each other there cost far more than they bring
os.environ.setdefault("OMP_NUM_THREADS", "1")

# in the background of a script it is ignored, and what tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
# and below nohup so is this one
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# an example that takes long says something about the machine
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", params=["mms-hf", "http-hf", "http-fused"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with the demo model and room for batches of four, with each front and each kind of batching.

    The answers are the same.
    """
    front, engine = request.param.split("-")
    with serving(GPTJ_FRONT=front, GPTJ_ENGINE=engine, GPTJ_MAX_BATCH_SIZE="4") as running:
        yield running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start servers come first: they take longest, and several processes share the rest."""
    here = Path(__file__).parent
    first = [here / "serving/http/test_front.py", here / "serving/http/test_openapi.py"]
    items.sort(key=lambda item: item.path.parent != here and item.path not in first)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Command line of pytest."""
    parser.addoption(
        "--api-requests",
        type=int,
        default=60,
        help="generated requests that tests/serving/http/test_openapi.py sends",
    )
    parser.addoption("--attack", help="URL of a running service for tests/test_attacks.py (-m outside)")
    parser.addoption("--attack-pid", type=int, help="its first process: memory is measured there")
