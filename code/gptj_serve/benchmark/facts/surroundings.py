"""Finds out where and when a measurement is made: machine, versions, commit, date."""

import contextlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import gptj_serve

PACKAGES = ("gptj-serve", "torch", "transformers", "deepspeed", "ctranslate2", "vllm")
UNKNOWN = "unknown"


def surroundings() -> dict[str, Any]:
    """Everything about where and when, for a file of results.

    Returns:
        ``when`` (ISO 8601), ``commit``, ``hardware`` and ``versions``.
    """
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"when": when, "commit": commit(), "hardware": hardware(), "versions": versions()}


def hardware() -> dict[str, Any]:
    """This machine: ``gpu`` (name, driver and memory of each), ``cpu``, ``num_cpus``, ``memory_gib``."""
    found = output_of(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    return {
        "gpu": "; ".join(found.splitlines()) or "none",
        "cpu": _cpu_name(),
        "num_cpus": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def commit() -> str:
    """The commit that this package was checked out from, ``-dirty`` if files differ from it; or "unknown"."""
    git = ["git", "-C", str(Path(gptj_serve.__file__).parent)]
    # the package may be installed somewhere below another project's repository
    if not output_of([*git, "ls-files", "__init__.py"]):
        return UNKNOWN
    described = output_of([*git, "rev-parse", "HEAD"])
    # untracked files do not count, because the results themselves may lie in the tree
    changed = output_of([*git, "status", "--porcelain", "--untracked-files=no"])
    return f"{described}-dirty" if changed else described or UNKNOWN


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def output_of(command: Sequence[str]) -> str:
    """What a command prints; an empty string when it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
