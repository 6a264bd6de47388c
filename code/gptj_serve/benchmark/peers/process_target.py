"""A target that is a peer in a process of its own."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gptj_serve.benchmark.facts.memory import MemoryWatch
from gptj_serve.benchmark.targets import processes
from gptj_serve.benchmark.targets.spawn import Spawn, Spawned
from gptj_serve.benchmark.targets.target import Query, TimedAnswer
from gptj_serve.errors import StartupError
from gptj_serve.serving.text import Tokenizer

TYPE = "COMPUTE_TYPE"
"""The name that `--set` gives the type of a peer's weights."""


class ProcessTarget:
    """Meets `gptj_serve.benchmark.targets.target.Target`; one request at a time, without HTTP.

    Args:
        name: The target's name in results.
        process: A process of `gptj_serve.benchmark.peers`, with its answers on stdout.
        tokenizer: The model's tokenizer.
    """

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", tokenizer: Tokenizer) -> None:
        self.name = name
        self._process = process
        self._tokenizer = tokenizer

    async def ask(self, ask: Query) -> TimedAnswer:
        """See `Target`. It blocks the event loop, on which nothing else runs meanwhile."""
        prompt_ids = self._tokenizer.encode(ask.prompt)
        asked_s = time.monotonic()
        answer = self._exchange(
            {"prompt_ids": prompt_ids, "num_tokens": ask.num_tokens, "stream": ask.stream}
        )
        seconds = time.monotonic() - asked_s
        if "error" in answer:
            return TimedAnswer(
                asked_s, seconds, 500 if answer["error"] else 0, error=answer["error"] or "it has ended"
            )
        token_s = tuple(answer["token_s"])
        return TimedAnswer(asked_s, seconds, 200, token_s, len(prompt_ids), answer["completion_tokens"])

    async def close(self) -> None:
        """See `Target`."""

    def first_line(self) -> dict[str, Any]:
        """The line that the peer writes when it is ready.

        Raises:
            StartupError: It could not load the model, or has ended; says why.
        """
        said = self._read()
        if "facts" not in said:
            raise StartupError(f"{self.name} did not start: {said['error'] or 'it has ended'}")
        return said

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": ""}
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": ""}
        return found


@contextlib.contextmanager
def started(
    spawn: Spawn, model: Path, *, work: Path, max_context: int, watch_memory: bool
) -> Iterator[Spawned]:
    """Start a peer's process, wait until its model is loaded, end it at exit.

    Args:
        spawn: The peer; its settings are its environment, and `TYPE` the type of its weights.
        model: Model directory.
        work: Where converted models are kept.
        max_context: Positions that are needed.
        watch_memory: Watch the start's memory.

    Raises:
        StartupError: It ended.
    """
    command = [
        *(sys.executable, "-m", "gptj_serve.benchmark.peers", "--peer", spawn.engine),
        *("--model", str(model), "--work", str(work), "--max-context", str(max_context)),
        *(("--type", spawn.settings[TYPE]) if TYPE in spawn.settings else ()),
    ]
    begun_s = time.monotonic()
    with processes.running(
        command, {**os.environ, **spawn.settings}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        target = ProcessTarget(spawn.name, process, Tokenizer.load(model))
        watch = MemoryWatch(process.pid)
        with watch if watch_memory else contextlib.nullcontext():
            facts = target.first_line()["facts"]
        start = {"seconds": round(time.monotonic() - begun_s, 3), "parts": {}, "loading": {}}
        yield Spawned(target, process.pid, start, watch.peaks, facts)
