"""When the image's own copy of CUDA's driver library is used."""

from pathlib import Path

import pytest

from gptj_serve.host import driver
from gptj_serve.host.driver import choose_compat, driver_version, find_compat

PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n"
    "GCC version:  gcc version 7.3.1 20180712 (Red Hat 7.3.1-17) (GCC)\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (dvs-builder)\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2)\n"
)
COMPAT = ("560.35.05", Path("/opt/cuda-compat"))


@pytest.mark.parametrize(("said", "version"), [(PROPRIETARY, "535.104.05"), (OPEN, "580.159.04"), ("", None)])
def test_the_hosts_driver_is_read(tmp_path: Path, said: str, version: str | None) -> None:
    path = tmp_path / "version"
    path.write_text(said)
    assert driver_version(path) == version


def test_no_driver_at_all(tmp_path: Path) -> None:
    assert driver_version(tmp_path / "version") is None


@pytest.mark.parametrize(
    ("host", "compat", "works", "used", "reason"),
    [
        ("470.256.02", COMPAT, True, True, "older than the image's 560.35.05"),
        ("560.28.03", COMPAT, True, True, "older"),
        ("470.256.02", COMPAT, False, False, "does not start on this GPU"),
        ("560.35.05", COMPAT, True, False, "not older"),
        ("580.159.04", COMPAT, True, False, "not older"),
        # as numbers: "60" is more than "6"
        ("560.60.03", ("560.6.03", COMPAT[1]), True, False, "not older"),
        ("470.256.02", None, True, False, "no compatibility libraries"),
        (None, COMPAT, True, False, "no NVIDIA driver"),
    ],
)
def test_choice(
    host: str | None, compat: tuple[str, Path] | None, works: bool, used: bool, reason: str
) -> None:
    chosen = choose_compat(host, compat, lambda folder: works and folder == COMPAT[1])
    assert (chosen.compat_dir is not None) == used
    assert chosen.version == host
    assert reason in chosen.reason


def test_a_trial_is_made_only_when_the_driver_is_older() -> None:
    def must_not_be_asked(_: Path) -> bool:
        raise AssertionError("asked")

    choose_compat("580.1", COMPAT, must_not_be_asked)
    choose_compat(None, COMPAT, must_not_be_asked)


def test_the_libraries_are_found_by_the_name_of_the_file(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    for folder in (empty, full):
        folder.mkdir()
    for name in ("libcuda.so", "libcuda.so.1", "libcuda.so.560.35.05", "libnvidia-nvvm.so.570.1.2"):
        (full / name).touch()
    assert find_compat([tmp_path / "none", empty, full]) == ("560.35.05", full)
    assert find_compat([empty]) is None


def test_they_come_first_on_the_library_path_of_the_process_that_uses_the_gpu() -> None:
    used = choose_compat("470.1", COMPAT, lambda _: True)
    assert used.environment({"A": "b"}) == {"A": "b", "LD_LIBRARY_PATH": "/opt/cuda-compat"}
    longer = used.environment({"LD_LIBRARY_PATH": "/usr/local/nvidia/lib"})
    assert longer["LD_LIBRARY_PATH"] == "/opt/cuda-compat:/usr/local/nvidia/lib"
    unused = choose_compat("580.1", COMPAT, lambda _: True)
    assert unused.environment({"LD_LIBRARY_PATH": "/x"}) == {"LD_LIBRARY_PATH": "/x"}


def test_the_trial_is_a_process_that_really_loads_the_library(tmp_path: Path) -> None:
    """Neither a folder without a library nor one with something else in its place starts CUDA."""
    assert not driver.cuda_starts({}, tmp_path)
    (tmp_path / "libcuda.so.1").write_bytes(b"no library")
    assert not driver.cuda_starts({}, tmp_path)
