"""The image under test, and a container of it."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from support.aws.run_commands import command
from support.container import DEMO, LOCKED_DOWN, Container, docker
from support.image_registry import Registry


@pytest.fixture(scope="session")
def image() -> str:
    """The image of this tree, made as users make it."""
    base = os.environ.get("TEST_BASE_IMAGE")
    on_base = ("--base-image", base) if base else ()
    built = command("build", "--tag", "gptj-serve:test", *on_base, timeout_s=3600)
    assert built.code == 0, built.err[-3000:]
    return "gptj-serve:test"


@pytest.fixture(scope="session")
def base_image(image: str) -> str:
    """The image that its runtime stage is built on."""
    labels = json.loads(docker("image", "inspect", "--format", "{{json .Config.Labels}}", image))
    return str(labels["org.opencontainers.image.base.name"])


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that nothing was pushed to."""
    with contextlib.closing(Registry(tmp_path_factory.mktemp("registry"))) as running:
        yield running


@pytest.fixture(scope="session")
def pushed(image: str, registry: Registry) -> Any:
    """What ``scripts/push --json`` said when it pushed the image to the registry."""
    place = f"{registry.address}/gptj-serve"
    return command("push", image, "--registry", place, "--json", timeout_s=900).json


@pytest.fixture(scope="session")
def container(image: str) -> Iterator[Container]:
    """A locked-down container with the demo model that no test ends."""
    with contextlib.closing(Container(image, *LOCKED_DOWN, *DEMO)) as running:
        yield running
