"""How fast this GPU reads its memory: what no engine can pass. Printed as JSON; a process of its own."""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence

from gptj_serve import safe_path

BUFFER_BYTES = 6_600_000_000
"""As much as the GPU has free, if that is less."""

REPEATS = 5


def measure_in_child() -> float | None:
    """Bytes per second that this machine's first GPU reads; None without a GPU."""
    command = [sys.executable, "-m", "gptj_serve.benchmark.facts.bandwidth"]
    with contextlib.suppress(subprocess.CalledProcessError):
        done = subprocess.run(
            command,
            env=safe_path.environment(os.environ),
            cwd=safe_path.ROOT,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found: float | None = json.loads(done.stdout)["read_bytes_per_s"]
        return found
    return None


def read_bytes_per_s() -> float | None:
    """The sum of a large buffer, median of several; None without a GPU."""
    import torch  # takes seconds, and only this process needs it

    if not torch.cuda.is_available():
        return None
    free_bytes, _ = torch.cuda.mem_get_info()
    numbers_N = torch.ones(min(BUFFER_BYTES, free_bytes // 2) // 8, dtype=torch.int64, device="cuda")

    def once() -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        numbers_N.sum()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    once()
    return numbers_N.nbytes / statistics.median(once() for _ in range(REPEATS))


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    argparse.ArgumentParser(prog="scripts/benchmark bandwidth", description=__doc__).parse_args(arguments)
    print(json.dumps({"read_bytes_per_s": read_bytes_per_s()}))


if __name__ == "__main__":
    main()
