"""One request at a time against ``serve``, engine after engine: tokens/s, time per token, time to ready.

Usage: scripts/benchmark --model DIR --engine hf --engine deepspeed --out results.json

For each engine a server is started on this machine. Each cell (input x output tokens) is measured over
HTTP, on one connection that is kept. Token counts are the server's own and are checked. The time per
output token is the slope between the cell and the same prompt with one new token: no prefill in it.

What serving adds is taken from calls for one token, in turns over HTTP and over the engine's own
socket: what the front does later runs beside the engine, and whole calls differ by more than that.
"""

import argparse
import contextlib
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gptj_serve.request import EndEvent, GenerationRequest, SamplingParams, TokenEvent
from gptj_serve.serving.client import EngineClient
from gptj_serve.serving.text import Tokenizer

CELLS = ((50, 50), (50, 200), (500, 100), (1000, 50), (1000, 200))
TOGETHER = (4, 16, 64)
TOGETHER_CELL = (200, 100)
PORT = 8098
START_TIMEOUT_S = 900.0
TIMEOUT_S = 600
NUM_SHORT_RUNS = 20


@dataclass(frozen=True, slots=True)
class Run:
    """One measured request: wall seconds of the whole call, as its client saw them."""

    input_tokens: int
    output_tokens: int
    path: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Target:
    """A running server, reached over HTTP and past its front; ``connect`` makes one more HTTP client."""

    http: Callable[[int, int], float]
    engine: Callable[[int, int], float]
    connect: Callable[[], Callable[[int, int], float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--engine", action="append", required=True, help="engine to measure; repeatable")
    parser.add_argument("--runs", type=int, default=5, help="measured requests a cell (default 5)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = surroundings()
    report["engines"] = {}
    for engine in args.engine:
        report["engines"][engine] = measure_engine(args.model, engine, args.runs)
        args.out.write_text(json.dumps(report, indent=1))
    print(table(report))


def measure_engine(model: Path, engine: str, num_runs: int) -> dict[str, Any]:
    """Start a server and measure all cells.

    Args:
        model: Model directory.
        engine: Name for ``GPTJ_ENGINE``.
        num_runs: Measured whole calls a cell.
    """
    with serving(model, engine) as (target, ready_s):
        very_first_s = target.http(CELLS[0][0], 1)
        runs: list[Run] = []
        for cell in CELLS:
            runs += measure_cell(target, *cell, num_runs)
            print(f"{engine}: {cell[0]}x{cell[1]} done", file=sys.stderr, flush=True)
        together = {number: measure_together(target, number, num_runs) for number in TOGETHER}
    return {
        "together_tokens_per_s": together,
        "start_to_ready_s": ready_s,
        "very_first_request_ms": very_first_s * 1000,
        "cells": [summary(runs, *cell) for cell in CELLS],
        "runs": [asdict(run) for run in runs],
    }


def measure_cell(target: Target, input_tokens: int, output_tokens: int, num_runs: int) -> list[Run]:
    """All measured requests of a cell, after one of each kind that is not counted."""
    runs: list[Run] = []
    plan = [("http", 1), ("engine", 1)] * NUM_SHORT_RUNS + [("http", output_tokens)] * num_runs
    for path, num_new in [("http", output_tokens), ("engine", 1), *plan]:
        ask = target.http if path == "http" else target.engine
        runs.append(Run(input_tokens, num_new, path, ask(input_tokens, num_new)))
    return runs[2:]


def measure_together(target: Target, number: int, num_runs: int) -> float:
    """Tokens per second of so many clients that ask at the same moment; the median, after one run that warms up."""
    clients = [target.connect() for _ in range(number)]
    input_tokens, output_tokens = TOGETHER_CELL

    def all_at_once() -> float:
        started_s = time.monotonic()
        list(pool.map(lambda ask: ask(input_tokens, output_tokens), clients))
        return number * output_tokens / (time.monotonic() - started_s)

    with ThreadPoolExecutor(number) as pool:
        return statistics.median([all_at_once() for _ in range(num_runs + 1)][1:])


def summary(runs: Sequence[Run], input_tokens: int, output_tokens: int) -> dict[str, float]:
    """A cell's medians.

    Returns:
        ``tokens_per_s`` of the whole call, ``tpot_ms`` (time per output token without the prefill),
        ``first_token_ms`` (a call for one token) and ``serving_adds_ms`` (such a call over HTTP minus
        one over the socket).
    """

    def median_s(path: str, num_new: int) -> float:
        wanted = (input_tokens, num_new, path)
        return statistics.median(
            run.seconds for run in runs if (run.input_tokens, run.output_tokens, run.path) == wanted
        )

    whole_s, first_s = median_s("http", output_tokens), median_s("http", 1)
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "tokens_per_s": output_tokens / whole_s,
        "tpot_ms": (whole_s - first_s) / (output_tokens - 1) * 1000,
        "first_token_ms": first_s * 1000,
        "serving_adds_ms": (first_s - median_s("engine", 1)) * 1000,
    }


def table(report: dict[str, Any]) -> str:
    """The report as a Markdown table."""
    lines = [
        "| engine | input x output | tokens/s | ms a token | first token, ms | serving adds, ms "
        "| start to ready, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for engine, measured in report["engines"].items():
        for cell in measured["cells"]:
            lines.append(
                f"| {engine} | {cell['input_tokens']} x {cell['output_tokens']} | {cell['tokens_per_s']:.1f} "
                f"| {cell['tpot_ms']:.2f} | {cell['first_token_ms']:.1f} | {cell['serving_adds_ms']:.1f} "
                f"| {measured['start_to_ready_s']:.1f} |"
            )
        for number, tokens_per_s in measured["together_tokens_per_s"].items():
            lines.append(f"| {engine} | {number} x ({TOGETHER_CELL[0]} x {TOGETHER_CELL[1]}) | {tokens_per_s:.0f} | | | | |")
    return "\n".join(lines)


@contextlib.contextmanager
def serving(model: Path, engine: str) -> Iterator[tuple[Target, float]]:
    """A server of this engine, and the seconds it took to answer ``/ping`` with 200."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as directory:
        env = {**os.environ, "GPTJ_MODEL_DIR": str(model), "GPTJ_ENGINE": engine, "TMPDIR": directory}
        env |= {"GPTJ_HOST": "127.0.0.1", "GPTJ_PORT": str(PORT), "GPTJ_REQUEST_TIMEOUT_S": str(TIMEOUT_S)}
        started_s = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "gptj_serve"], env=env, stdout=sys.stderr)
        try:
            _wait_until_ready(process, started_s)
            ready_s = time.monotonic() - started_s
            (socket_path,) = Path(directory).glob("gptj-*/engine.sock")
            client = EngineClient(socket_path)
            tokenizer = Tokenizer.load(Path(client.info.model_dir))
            target = Target(
                _http(tokenizer), _past_the_front(tokenizer, client), lambda: _http(tokenizer)
            )
            yield target, ready_s
            client.close()
        finally:
            process.terminate()
            process.wait(60)


def _wait_until_ready(process: "subprocess.Popen[bytes]", started_s: float) -> None:
    while time.monotonic() - started_s < START_TIMEOUT_S:
        if process.poll() is not None:
            sys.exit(f"the server ended with exit code {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ping", timeout=2):
            return
        time.sleep(0.05)
    sys.exit(f"the server was not ready within {START_TIMEOUT_S:g} s")


def _http(tokenizer: Tokenizer) -> Callable[[int, int], float]:
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT_S)

    def ask(input_tokens: int, output_tokens: int) -> float:
        asked = {"prompt": prompt(tokenizer, input_tokens), "max_tokens": output_tokens, "temperature": 0}
        body = json.dumps(asked)
        started_s = time.monotonic()
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        seconds = time.monotonic() - started_s
        if answer.status != 200:
            sys.exit(f"the server answered {answer.status}: {content[:500]!r}")
        usage = json.loads(content)["usage"]
        _check(usage["prompt_tokens"], input_tokens)
        _check(usage["completion_tokens"], output_tokens)
        return seconds

    return ask


def _past_the_front(tokenizer: Tokenizer, client: EngineClient) -> Callable[[int, int], float]:
    def ask(input_tokens: int, output_tokens: int) -> float:
        prompt_ids = tuple(tokenizer.encode(prompt(tokenizer, input_tokens)))
        sampling = SamplingParams(output_tokens, min_new_tokens=output_tokens)
        name = str(time.monotonic_ns())
        request = GenerationRequest(name, prompt_ids, sampling, client.info.eos_token_ids)
        started_s = time.monotonic()
        events = list(client.generate([request]))
        seconds = time.monotonic() - started_s
        ends = [event for event in events if isinstance(event, EndEvent)]
        if [end.reason for end in ends] != ["length"]:
            sys.exit(f"the engine answered {ends}")
        _check(sum(isinstance(event, TokenEvent) for event in events), output_tokens)
        return seconds

    return ask


def prompt(tokenizer: Tokenizer, num_tokens: int) -> str:
    """A text of exactly this many tokens."""
    text = " the" * num_tokens
    _check(len(tokenizer.encode(text)), num_tokens)
    return text


def _check(got: int, wanted: int) -> None:
    if got != wanted:
        sys.exit(f"{got} tokens where {wanted} were asked for: this measures nothing")


def surroundings() -> dict[str, Any]:
    """Where and when a measurement is made: date, versions, GPU with its driver, CPUs."""
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "deepspeed"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        gpu = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        gpu = "none"
    when = datetime.now(timezone.utc).isoformat()
    return {"when": when, "versions": versions, "gpu": gpu, "num_cpus": os.cpu_count()}


if __name__ == "__main__":
    main()
