"""Watches how much memory a server's processes hold, and keeps the peaks."""

import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import psutil

from gptj_serve.benchmark.facts.surroundings import output_of

INTERVAL_S = 0.25


class MemoryWatch:
    """Looks at a process and all its descendants at intervals while it is entered as a context manager.

    Args:
        pid: Id of the first process.
        gpu_before: Bytes that the whole GPU held before that process; None takes what it holds now.

    Attributes:
        peaks: The most bytes at one moment. ``rss`` counts shared pages once for each process, ``pss`` once
            in all; ``gpu`` is what the driver counts for these processes or, where it does not see them (in
            some containers), how much more the whole GPU holds than before (``gpu_counts`` says which).
    """

    def __init__(self, pid: int, gpu_before: int | None = None) -> None:
        self.peaks: dict[str, Any] = {}
        self._pid = pid
        self._gpu_before = gpu_before
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> "MemoryWatch":
        if self._gpu_before is None:
            self._gpu_before = _whole_gpu_bytes()
        if self._gpu_before is not None:
            self.peaks["gpu_before_bytes"] = self._gpu_before
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.is_set():
            self._look()
            self._is_over.wait(INTERVAL_S)

    def _look(self) -> None:
        pids = _tree(self._pid)
        found = {"num_processes": len(pids), "rss_bytes": 0, "pss_bytes": 0}
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                held = psutil.Process(pid).memory_full_info()
                found["rss_bytes"] += held.rss
                found["pss_bytes"] += held.pss
        if self._gpu_before is not None:
            own = _gpu_bytes(pids)
            self.peaks["gpu_counts"] = "processes" if own else "whole GPU"
            found["gpu_bytes"] = own or (_whole_gpu_bytes() or 0) - self._gpu_before
        for name, value in found.items():
            self.peaks[name] = max(value, self.peaks.get(name, 0))


def _tree(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    return []


def _gpu_bytes(pids: Sequence[int]) -> int:
    rows = _nvidia_smi("--query-compute-apps=pid,used_memory")
    return sum(_mib(used) for pid, used in rows if int(pid) in pids)


def _whole_gpu_bytes() -> int | None:
    """Bytes that all GPUs hold; None without a GPU."""
    rows = _nvidia_smi("--query-gpu=memory.used")
    return sum(_mib(used) for (used,) in rows) if rows else None


def _nvidia_smi(query: str) -> list[list[str]]:
    lines = output_of(["nvidia-smi", query, "--format=csv,noheader,nounits"]).splitlines()
    return [[part.strip() for part in line.split(",")] for line in lines if line.strip()]


def _mib(raw: str) -> int:
    return int(raw) << 20 if raw.isdigit() else 0
