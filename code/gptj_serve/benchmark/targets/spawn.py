"""Starts ``serve`` on this machine as a target, and measures the start."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptj_serve.benchmark.facts import phases
from gptj_serve.benchmark.facts.memory import MemoryWatch
from gptj_serve.benchmark.targets import processes
from gptj_serve.benchmark.targets.http import HttpTarget
from gptj_serve.benchmark.targets.target import Target
from gptj_serve.errors import StartupError

START_TIMEOUT_S = 1800.0
DEFAULTS = {
    "GPTJ_FRONT": "http",
    "GPTJ_HOST": "127.0.0.1",
    "GPTJ_REQUEST_TIMEOUT_S": "600",
    "GPTJ_STREAM_TIMEOUT_S": "600",
}
NUM_LAST_LINES = 5
END_TIMEOUT_S = 5.0
"""How long a server may take to end after its engine or front has died."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """A server to start.

    Attributes:
        name: The target's name in results.
        engine: Value for ``GPTJ_ENGINE``, or a peer's name.
        settings: Further variables of its environment, ``GPTJ_*`` and others.
    """

    name: str
    engine: str
    settings: Mapping[str, str] = field(default_factory=dict)

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Its environment but for the port: ``env`` goes over `DEFAULTS`, and its own settings over both."""
        return {**DEFAULTS, **env, **self.settings, "GPTJ_ENGINE": self.engine}

    def facts(self, env: Mapping[str, str]) -> dict[str, Any]:
        """What the file of results says of it."""
        environment = self.environment(env)
        own = {
            name: environment[name]
            for name in environment
            if name not in ("GPTJ_MODEL_DIR", "GPTJ_PORT")
            and (name.startswith("GPTJ_") or name in self.settings)
        }
        return {"kind": "spawn", "settings": dict(sorted(own.items()))}


@dataclass(frozen=True, slots=True)
class Spawned:
    """A server, or a peer, that is ready.

    Attributes:
        target: The target that asks it.
        pid: Id of its first process.
        start: What `phases.phases` makes of its log, and ``seconds`` until it was ready.
        start_peaks: Peaks of memory during the start; empty unless that was watched.
        facts: What it says about the model that it runs.
        last_words: Gives what it said last if it has ended or is about to end; else an empty string.
    """

    target: Target
    pid: int
    start: dict[str, Any]
    start_peaks: dict[str, Any]
    facts: dict[str, Any]
    last_words: Callable[[], str] = lambda: ""


@contextlib.contextmanager
def spawned(
    spawn: Spawn, model: Path, *, timeout_s: float, watch_memory: bool = False, forget_kernels: bool = False
) -> Iterator[Spawned]:
    """Start ``serve``, wait until it is ready, and end it at exit.

    Args:
        spawn: The server to start.
        model: Model directory.
        timeout_s: How many seconds an answer may take.
        watch_memory: Watch memory during the start.
        forget_kernels: Do not use kernels that an earlier start has compiled.

    Raises:
        StartupError: It ended or was not ready in time; the message has what it said.
    """
    with contextlib.ExitStack() as stack:
        port = processes.free_port()
        env = spawn.environment(os.environ) | {"GPTJ_MODEL_DIR": str(model), "GPTJ_PORT": str(port)}
        if forget_kernels:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            env |= {"TORCH_EXTENSIONS_DIR": folder, "XDG_CACHE_HOME": folder}
        process = stack.enter_context(
            processes.running(
                [sys.executable, "-m", "gptj_serve"],
                env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                end_timeout_s=30,
            )
        )
        log = _ServerLog(process)
        watch = MemoryWatch(process.pid)
        with watch if watch_memory else contextlib.nullcontext():
            log.wait_until_ready(spawn.name)
        records = {record.get("event"): record for record in phases.records(log.lines)}
        target = HttpTarget(spawn.name, f"http://127.0.0.1:{port}", timeout_s)
        start = {"seconds": records["ready"]["seconds"], **phases.phases(log.lines)}
        facts = {
            "weight_bytes": records["model_loaded"]["device_bytes"],
            "engine": records["ready"]["engine"],
        }
        yield Spawned(target, process.pid, start, watch.peaks, facts, log.last_words)


class _ServerLog:
    """Reads what a server prints, in a thread of its own."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.lines: list[str] = []
        self._process = process
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._read, name="log", daemon=True)
        self._thread.start()

    def wait_until_ready(self, name: str) -> None:
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready.wait(0.1):
            if self._process.poll() is not None:
                raise StartupError(f"{name} did not start{self.last_words()}")
            if time.monotonic() > give_up_s:
                raise StartupError(f"{name} was not ready within {START_TIMEOUT_S:g} s{self._last()}")

    def last_words(self) -> str:
        """See `Spawned`."""
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return ""
        self._thread.join(END_TIMEOUT_S)
        return self._last()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(ValueError):  # the pipe is closed at the end
            for raw in self._process.stdout:
                line = raw.decode("utf-8", "replace")
                self.lines.append(line)
                if '"event": "ready"' in line:
                    self._is_ready.set()

    def _last(self) -> str:
        messages = [":"]
        for line in self.lines[-NUM_LAST_LINES:]:
            try:
                messages.append(f"  {json.loads(line)['message']}")
            except (ValueError, KeyError, TypeError):
                messages.append(f"  {line.rstrip()}")
        return "\n".join(messages)
