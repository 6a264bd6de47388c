"""How fast this GPU reads its memory, which no engine can exceed, and the timing of work on the GPU.

PyTorch is imported where it is used: `scripts/benchmark run` has a process of its own measure the memory.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

from gptj_serve import safe_path
from gptj_serve.host.driver import initialise_cuda

BUFFER_BYTES = 6_600_000_000
"""Size of the buffer that is read; half of the GPU's free memory where that is less."""

REPEATS = 5


def measure_in_child() -> float | None:
    """How many bytes this machine's first GPU reads in a second; None without a GPU."""
    command = [sys.executable, "-m", "gptj_serve.benchmark", "bandwidth"]
    with contextlib.suppress(subprocess.CalledProcessError):
        done = subprocess.run(
            command,
            env=safe_path.environment(os.environ),
            cwd=safe_path.ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return cast(float | None, json.loads(done.stdout)["read_bytes_per_s"])
    return None


def read_bytes_per_s() -> float:
    """How many bytes a second the GPU reads while it sums a large buffer; the median of several runs."""
    import torch

    free_bytes, _ = torch.cuda.mem_get_info()
    numbers_N = torch.ones(min(BUFFER_BYTES, free_bytes // 2) // 8, dtype=torch.int64, device="cuda")
    return numbers_N.nbytes / gpu_seconds(numbers_N.sum, REPEATS)


def gpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    """How many seconds work takes on the GPU: the median of several runs, after one that does not count."""
    import torch

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    once()
    return statistics.median(once() for _ in range(repeats))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    argparse.ArgumentParser(
        prog="scripts/benchmark bandwidth", description=__doc__.splitlines()[0]
    ).parse_args(arguments)
    has_gpu = initialise_cuda() == 0
    if has_gpu:
        import torch  # takes seconds, and nothing without a GPU needs it

        has_gpu = torch.cuda.is_available()
    print(json.dumps({"read_bytes_per_s": read_bytes_per_s() if has_gpu else None}))
