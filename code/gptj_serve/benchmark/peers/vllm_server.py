"""A target that is vLLM's own server, which speaks OpenAI's completions."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from gptj_serve.benchmark.facts.memory import MemoryWatch
from gptj_serve.benchmark.targets import processes
from gptj_serve.benchmark.targets.http import HttpTarget
from gptj_serve.benchmark.targets.spawn import START_TIMEOUT_S, Spawn, Spawned
from gptj_serve.errors import StartupError

MODEL = "gptj"


def command(model: Path, port: int, max_context: int) -> list[str]:
    """The command that starts it, with its prefix cache off, as ours has none."""
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float16", "--max-model-len", str(max_context), "--no-enable-prefix-caching"),
    ]


@contextlib.contextmanager
def started(
    spawn: Spawn, model: Path, *, max_context: int, timeout_s: float, watch_memory: bool
) -> Iterator[Spawned]:
    """Start the server, wait until it is healthy, end it at exit.

    Args:
        spawn: The peer; its settings are its environment.
        model: Model directory.
        max_context: Positions that are needed.
        timeout_s: How many seconds an answer may take.
        watch_memory: Watch the start's memory.

    Raises:
        StartupError: It ended, or was not healthy in time.
    """
    port = processes.free_port()
    begun_s = time.monotonic()
    env = {**os.environ, **spawn.settings}
    with processes.running(
        command(model, port, max_context), env, stdout=sys.stderr.fileno(), end_timeout_s=30
    ) as process:
        watch = MemoryWatch(process.pid)
        with watch if watch_memory else contextlib.nullcontext():
            _wait_until_healthy(spawn.name, process, port)
        start = {"seconds": round(time.monotonic() - begun_s, 3), "parts": {}, "loading": {}}
        target = HttpTarget(
            spawn.name, f"http://127.0.0.1:{port}/v1/completions", timeout_s, {"model": MODEL}
        )
        yield Spawned(target, process.pid, start, watch.peaks, {"bytes_per_weight": 2})


def _wait_until_healthy(name: str, process: "subprocess.Popen[bytes]", port: int) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_s:
        if process.poll() is not None:
            raise StartupError(f"{name} did not start (it said why above)")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2),
        ):
            return
        time.sleep(0.1)
    raise StartupError(f"{name} was not ready within {START_TIMEOUT_S:g} s")
