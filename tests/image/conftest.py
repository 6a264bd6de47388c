"""The image under test, and a container of it."""

import contextlib
import json
from collections.abc import Iterator

import pytest
from container import DEMO, LOCKED_DOWN, Container, build, docker


@pytest.fixture(scope="session")
def image() -> str:
    """The image of this tree."""
    return build("gptj-serve:test")


@pytest.fixture(scope="session")
def base_image(image: str) -> str:
    """The image that its runtime stage is built on."""
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    return str(labels["org.opencontainers.image.base.name"])


@pytest.fixture(scope="session")
def container(image: str) -> Iterator[Container]:
    """A locked-down container with the demo model that no test ends."""
    with contextlib.closing(Container(image, *LOCKED_DOWN, *DEMO)) as running:
        yield running
