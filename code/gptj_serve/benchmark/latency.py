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
import itertools
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
NUM_DISTURBING, DISTURBING_TOKENS, DISTURBED_TOKENS = 4, 1000, 400
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
    """A running server. Calls take numbers of tokens and return seconds.

    Attributes:
        http: Asks over HTTP.
        engine: Asks past the front.
        connect: Makes one more HTTP client.
        at_once: Sends so many requests in one call past the front.
        disturbed: Gaps between a sequence's tokens, in seconds, while long prompts come in.
    """

    http: Callable[[int, int], float]
    engine: Callable[[int, int], float]
    connect: Callable[[], Callable[[int, int], float]]
    at_once: Callable[[int], float]
    disturbed: Callable[[], list[float]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--engine", action="append", required=True, help="engine to measure; repeatable")
    parser.add_argument(
        "--together", type=int, nargs="*", default=TOGETHER, help="how many clients at once (default 4 16 64)"
    )
    parser.add_argument("--runs", type=int, default=5, help="measured requests a cell (default 5)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = surroundings()
    report["engines"] = {}
    for engine in args.engine:
        report["engines"][engine] = measure_engine(args.model, engine, args.runs, args.together)
        args.out.write_text(json.dumps(report, indent=1))
    print(table(report))


def measure_engine(
    model: Path, engine: str, num_runs: int, together_numbers: Sequence[int]
) -> dict[str, Any]:
    """Start a server and measure all cells.

    Args:
        model: Model directory.
        engine: Name for ``GPTJ_ENGINE``.
        num_runs: Measured whole calls a cell.
        together_numbers: How many clients ask at once, number after number.
    """
    with serving(model, engine) as (target, ready_s):
        very_first_s = target.http(CELLS[0][0], 1)
        runs: list[Run] = []
        for cell in CELLS:
            runs += measure_cell(target, *cell, num_runs)
            print(f"{engine}: {cell[0]}x{cell[1]} done", file=sys.stderr, flush=True)
        together = {number: measure_together(target.connect, number, num_runs) for number in together_numbers}
        gaps_s = sorted(target.disturbed())
        under_prefill = {
            "prompts": f"{NUM_DISTURBING} of {DISTURBING_TOKENS} tokens, one after the other",
            "median": statistics.median(gaps_s) * 1000,
            "p99": gaps_s[int(0.99 * len(gaps_s))] * 1000,
            "max": gaps_s[-1] * 1000,
        }
        past_the_front = {
            number: median_rate(target.at_once, number, num_runs) for number in together_numbers
        }
    return {
        "tpot_under_prefill_ms": under_prefill,
        "together_tokens_per_s": together,
        "together_past_the_front_tokens_per_s": past_the_front,
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


def measure_together(connect: Callable[[], Callable[[int, int], float]], number: int, num_runs: int) -> float:
    """Tokens per second of so many HTTP clients that ask at the same moment; see `median_rate`."""
    clients = [connect() for _ in range(number)]

    def at_once(_: int) -> float:
        started_s = time.monotonic()
        list(pool.map(lambda ask: ask(*TOGETHER_CELL), clients))
        return time.monotonic() - started_s

    with ThreadPoolExecutor(number) as pool:
        return median_rate(at_once, number, num_runs)


def median_rate(at_once: Callable[[int], float], number: int, num_runs: int) -> float:
    """Tokens per second of so many requests together: the median, after one run that warms up."""
    seconds = [at_once(number) for _ in range(num_runs + 1)][1:]
    return number * TOGETHER_CELL[1] / statistics.median(seconds)


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
        of_each = f"{TOGETHER_CELL[0]} x {TOGETHER_CELL[1]}"
        for number, tokens_per_s in measured["together_tokens_per_s"].items():
            past_the_front = measured["together_past_the_front_tokens_per_s"][number]
            rates = f"{tokens_per_s:.0f} ({past_the_front:.0f} past the front)"
            lines.append(f"| {engine} | {number} times {of_each} | {rates} | | | | |")
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
                _http(tokenizer),
                _past_the_front(tokenizer, client),
                lambda: _http(tokenizer),
                lambda number: _at_once(tokenizer, client, number),
                lambda: _disturbed(tokenizer, socket_path),
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
    return lambda *cell: _ask_engine(tokenizer, client, 1, *cell)


def _at_once(tokenizer: Tokenizer, client: EngineClient, number: int) -> float:
    return _ask_engine(tokenizer, client, number, *TOGETHER_CELL)


def _ask_engine(
    tokenizer: Tokenizer, client: EngineClient, number: int, input_tokens: int, output_tokens: int
) -> float:
    prompt_ids = tuple(tokenizer.encode(prompt(tokenizer, input_tokens)))
    sampling = SamplingParams(output_tokens, min_new_tokens=output_tokens)
    name, eos = str(time.monotonic_ns()), client.info.eos_token_ids
    requests = [GenerationRequest(f"{name} {i}", prompt_ids, sampling, eos) for i in range(number)]
    started_s = time.monotonic()
    events = list(client.generate(requests))
    seconds = time.monotonic() - started_s
    ends = [event for event in events if isinstance(event, EndEvent)]
    if [end.reason for end in ends] != ["length"] * number:
        sys.exit(f"the engine answered {ends}")
    _check(sum(isinstance(event, TokenEvent) for event in events), number * output_tokens)
    return seconds


def _disturbed(tokenizer: Tokenizer, socket_path: Path) -> list[float]:
    """One sequence is decoded while long prompts come in for one token each, one after the other."""
    stream, other = EngineClient(socket_path), EngineClient(socket_path)
    prompt_ids = tuple(tokenizer.encode(prompt(tokenizer, TOGETHER_CELL[0])))
    request = GenerationRequest(
        "stream", prompt_ids, SamplingParams(DISTURBED_TOKENS), stream.info.eos_token_ids
    )

    def disturb() -> None:
        for _ in range(NUM_DISTURBING):
            time.sleep(DISTURBED_TOKENS / NUM_DISTURBING / 2 * 0.004)
            _ask_engine(tokenizer, other, 1, DISTURBING_TOKENS, 1)

    with ThreadPoolExecutor(1) as pool:
        times_s, disturbing = [], None
        for event in stream.generate([request]):
            if isinstance(event, TokenEvent):
                times_s.append(time.monotonic())
            disturbing = disturbing or pool.submit(disturb)
        if disturbing is not None:
            disturbing.result()
    stream.close()
    other.close()
    return [later - earlier for earlier, later in itertools.pairwise(times_s)]


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
