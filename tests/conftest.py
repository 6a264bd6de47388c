"""One server for all tests that do not end it."""

import contextlib
import functools
import gc
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

from support.server import WITHOUT_MODEL, Server, serving

# what tests import stays: to look at it again and again takes a third of the time of importing it
gc.disable()

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


@pytest.fixture(scope="session")
def shared() -> Iterator[Callable[[str], Server]]:
    """Servers with room for batches of four: "FRONT-ENGINE", each started once.

    Engines are those of the settings, with the demo model, and "static" and "continuous", which batch as
    their names say and have no model.
    """
    engines = {
        "hf": {"GPTJ_ENGINE": "auto", "CUDA_VISIBLE_DEVICES": ""},  # what it takes without a GPU
        "fused": {"GPTJ_ENGINE": "fused"},
        "static": {**WITHOUT_MODEL, "GPTJ_ENGINE": "hf"},
        "continuous": {**WITHOUT_MODEL, "GPTJ_ENGINE": "fused"},
    }
    with contextlib.ExitStack() as stack:

        @functools.cache
        def running(name: str) -> Server:
            front, engine = name.split("-")
            return stack.enter_context(serving(GPTJ_FRONT=front, **engines[engine]))

        yield running


@pytest.fixture(scope="session", params=["mms-hf", "http-fused"])
def server(request: pytest.FixtureRequest, shared: Callable[[str], Server]) -> Server:
    """A server with each front and each kind of batching. The answers are the same."""
    return shared(request.param)


ON_SHARED_SERVERS = ("tests/serving/http/test_front.py", "tests/test_serve.py", "tests/test_attacks.py")
TAKE_LONG = (*ON_SHARED_SERVERS, "tests/serving/http/test_openapi.py")


class SharedServers(LoadFileScheduling):  # type: ignore[misc]
    """A file is run by one process, and so are all files whose tests ask the same servers."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        return "shared servers" if file in ON_SHARED_SERVERS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Which process runs what, with ``--dist loadfile``."""
    return SharedServers(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start servers come first: they take longest, and several processes share the rest."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> tuple[bool, bool]:
        takes_long = item.nodeid.split("::")[0] in TAKE_LONG
        return not takes_long, item.path.parent != here

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """From here on, only what tests leave is looked for."""
    gc.collect()
    gc.freeze()
    gc.enable()


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
