"""The image's locked dependencies against what the package says it needs."""

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

import gptj_serve
from support.server import ROOT

LOCKED = dict(
    re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)
)


def required() -> list[Requirement]:
    """What the package needs in the image, but for PyTorch."""
    all_ = [Requirement(line) for line in requires("gptj-serve") or []]
    in_image = [
        one
        for one in all_
        if one.marker is None or any(one.marker.evaluate({"extra": name}) for name in ("deepspeed", "java"))
    ]
    return [one for one in in_image if one.name != "torch"]


def test_the_lock_has_what_the_package_needs() -> None:
    for requirement in required():
        assert requirement.specifier.contains(LOCKED[requirement.name]), requirement


def test_pytorch_is_the_base_images() -> None:
    assert "torch" not in LOCKED
    assert not [name for name in LOCKED if name.startswith(("nvidia", "triton", "cuda"))]


def test_every_package_is_pinned_by_its_content() -> None:
    packages = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    for package in packages:
        assert package.startswith("#") or "--hash=sha256:" in package, package


def test_the_images_version_is_the_packages() -> None:
    assert f"ARG VERSION={gptj_serve.__version__}\n" in Path(ROOT, "Dockerfile").read_text()
