"""Finds the host's NVIDIA driver, and decides whether the image's own CUDA driver library is needed.

An image cannot bring the kernel's part of a driver, but NVIDIA's "forward compatibility" packages bring the
other part, ``libcuda.so``, with which a host with an older driver runs newer CUDA. On a host whose driver is
as new or newer it must not be used, so it is on no search path until this module puts it there.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

VERSION_FILE = Path("/proc/driver/nvidia/version")
COMPAT_DIRS = (Path("/opt/cuda-compat"), Path("/usr/local/cuda/compat"))
"""Where images have the compatibility libraries: ours, and NVIDIA's own base images."""

PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Driver:
    """The driver that was found, and whether the compatibility libraries are used.

    Attributes:
        version: The host's driver, for example "550.54.15"; None without one.
        compat_dir: The folder that goes in front of ``LD_LIBRARY_PATH``; None leaves that alone.
        reason: The reason for that, in words for the log.
    """

    version: str | None
    compat_dir: Path | None
    reason: str

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """The environment for a process that uses the GPU."""
        if self.compat_dir is None:
            return dict(env)
        return _with_library_path(env, self.compat_dir)


def find_driver(env: Mapping[str, str]) -> Driver:
    """Look at this machine; it takes no time unless the host's driver is older than the image's libraries.

    Args:
        env: Environment of the trial that decides.
    """
    return choose_compat(
        driver_version(VERSION_FILE), find_compat(COMPAT_DIRS), lambda folder: cuda_starts(env, folder)
    )


def choose_compat(
    driver: str | None, compat: tuple[str, Path] | None, works: Callable[[Path], bool]
) -> Driver:
    """Decide whether the compatibility libraries are used.

    Args:
        driver: Version of the host's driver; None without one.
        compat: The libraries' version and folder.
        works: Whether CUDA starts with the libraries of a folder; only called when it matters. CUDA does not
            start so on GPUs without forward compatibility (GeForce), where the host's own driver may work.
    """
    if driver is None:
        return Driver(None, None, "no NVIDIA driver on this host")
    if compat is None:
        return Driver(driver, None, "no compatibility libraries in this image")
    version, folder = compat
    if _numbers(driver) >= _numbers(version):
        return Driver(driver, None, f"the host's driver is not older than the image's {version}")
    if not works(folder):
        return Driver(driver, None, f"the image's {version} is newer, but does not start on this GPU")
    return Driver(driver, folder, f"the host's driver is older than the image's {version}")


def driver_version(path: Path = VERSION_FILE) -> str | None:
    """Version of the driver that the kernel has loaded, read from the kernel's file; None without one."""
    try:
        said = path.read_text(errors="replace")
    except OSError:
        return None
    # "… Kernel Module  535.1.2  Fri …" or "… Open Kernel Module for x86_64  580.1.2  Release …"
    found = re.search(r"^NVRM version:.*?\s(\d+(?:\.\d+)+)\s", said, re.MULTILINE)
    return found[1] if found else None


def find_compat(folders: Iterable[Path]) -> tuple[str, Path] | None:
    """Version and folder of the first compatibility libraries that exist; None without any."""
    for folder in folders:
        versions = [
            found[1]
            for path in folder.glob("libcuda.so.*")
            if (found := re.fullmatch(r"libcuda\.so\.(\d+(?:\.\d+)+)", path.name))
        ]
        if versions:
            return max(versions, key=_numbers), folder
    return None


def cuda_starts(env: Mapping[str, str], folder: Path) -> bool:
    """Whether CUDA can be initialised with the libraries of a folder; a process of its own tries it."""
    command = [sys.executable, "-m", "gptj_serve.host.driver"]
    try:
        ran = subprocess.run(
            command,
            env=_with_library_path(env, folder),
            capture_output=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def initialise_cuda() -> int:
    """Initialise CUDA's driver library in this process; returns its error code, 0 if it works."""
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0))
    except OSError:
        return 999


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _with_library_path(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    before = env.get("LD_LIBRARY_PATH")
    return {**env, "LD_LIBRARY_PATH": os.pathsep.join([str(folder), before] if before else [str(folder)])}


if __name__ == "__main__":
    sys.exit(min(initialise_cuda(), 1))
