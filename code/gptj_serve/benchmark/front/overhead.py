"""Measures what a front adds to the engine's time and whether it keeps up, with an engine that has no model.

Usage: scripts/benchmark front [--out front.json]

Each front runs over an engine process that gives every sequence its tokens at a fixed rate and records when
(`gptj_serve.benchmark.front.fake_engine`); this process is the client. What a front adds to a whole call is
the client's time less the engine's, from the submission to the last token; the engine's socket alone is
measured in the same way. A token of a stream is late by the time from the engine's message to the client's
read. All times are taken from the machine's monotonic clock.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from gptj_serve import run_dir
from gptj_serve.benchmark.facts.surroundings import surroundings
from gptj_serve.benchmark.front.fake_service import FakeService, running
from gptj_serve.benchmark.targets.event_client import Connection, TimedExchange
from gptj_serve.request import EndEvent, GenerationRequest, SamplingParams
from gptj_serve.serving.http.link import EngineLink

TOKENS_PER_S = 100
FRONTS = ("http", "mms")
PROMPT = "In the beginning God created the heaven and the earth."


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        num_calls: How many whole calls are made one after the other.
        num_rounds: How often `num_together` whole calls are made at the same time.
        num_tokens: Tokens of each whole call.
        num_together: How many whole calls, or streams, run at the same time.
        stream_s: How many seconds streams last.
    """

    num_calls: int = 50
    num_rounds: int = 5
    num_tokens: int = 40
    num_together: int = 64
    stream_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Called:
    """A whole call as its client saw it."""

    request_id: str
    seconds: float


Ask = Callable[[str, int], Awaitable[Called]]
Times = dict[str, Any]
"""What the fake engine recorded of each sequence, by the part of its id that the client knows."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark front", description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=FRONTS, help="one of the fronts (default: both)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    fronts = (args.only,) if args.only else FRONTS
    report: dict[str, Any] = {**surroundings(), "tokens_per_s": TOKENS_PER_S}
    report["fronts"] = {front: measure(front, Plan()) for front in fronts}
    text = json.dumps(report, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


def measure(front: str, plan: Plan) -> dict[str, Any]:
    """Start an engine and a front and measure.

    Args:
        front: Name for ``GPTJ_FRONT``.
        plan: How much is measured.

    Returns:
        ``alone`` and ``together``: the milliseconds that are added to sequential and to concurrent whole
        calls, by path (``socket`` and the front); ``streams``, for the front that has them: how late tokens
        are.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log.json")
        with running(front, TOKENS_PER_S, log) as service:
            called, streams = uvloop.run(_run(front, plan, service))
        times: Times = {_known(name): kept for name, kept in json.loads(log.read_text()).items()}
    report: dict[str, Any] = {
        kind: {path: summary([added_ms(one, times) for one in calls]) for path, calls in by_path.items()}
        for kind, by_path in called.items()
    }
    if streams:
        report["streams"] = {
            schema: {**lateness(exchanges, times), "front_cpu_us_a_token": round(cpu_us, 1)}
            for schema, (exchanges, cpu_us) in streams.items()
        }
    return report


def summary(values_ms: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum in milliseconds, and the number of values."""
    percentiles = statistics.quantiles(values_ms, n=100, method="inclusive")
    return {
        "num": len(values_ms),
        "median_ms": round(percentiles[49], 3),
        "p99_ms": round(percentiles[98], 3),
        "max_ms": round(max(values_ms), 3),
    }


def _known(engine_id: str) -> str:
    """The call's id within a sequence's: the HTTP front appends ``#N``, and both fronts append ``/N``."""
    return engine_id.rsplit("/", 1)[0].split("#")[0]


def added_ms(call: Called, times: Times) -> float:
    """How much longer a call took than the engine did, from the submission to the last token."""
    kept = times[call.request_id]
    return 1000 * float(call.seconds - (kept["sent_s"][-1] - kept["received_s"]))


def lateness(exchanges: Sequence[TimedExchange], times: Times) -> dict[str, float]:
    """How long after the engine's message the client had each token of streams.

    Raises:
        RuntimeError: An answer has fewer events than tokens.
    """
    late_ms: list[float] = []
    for exchange in exchanges:
        sent_s = times[exchange.request_id]["sent_s"]
        if len(exchange.event_s) < len(sent_s):
            raise RuntimeError(f"{len(exchange.event_s)} events came of {len(sent_s)} tokens")
        # OpenAI's streams end with an event of its own, after those of the tokens
        pairs = zip(sent_s, exchange.event_s, strict=False)
        late_ms += [1000 * (arrived_s - token_s) for token_s, arrived_s in pairs]
    return summary(late_ms)


def _tgi(num_tokens: int, stream: bool = True) -> Any:
    return {"inputs": PROMPT, "parameters": {"max_new_tokens": num_tokens}, "stream": stream}


def _openai(num_tokens: int) -> Any:
    return {"prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0, "stream": True}


STREAMS = {"tgi": _tgi, "openai": _openai}
"""By schema, how a stream of a number of tokens is asked for."""


async def _run(front: str, plan: Plan, service: FakeService) -> Any:
    link = await EngineLink.connect(run_dir.engine_socket(service.directory))
    concurrent = {"socket": await _concurrent("socket", [_socket_ask(link)] * plan.num_together, plan)}
    async with _connected(service.port, plan.num_together) as connections:
        concurrent[front] = await _concurrent(front, list(map(_http_ask, connections)), plan)
    async with _connected(service.port, 1) as (connection,):
        sequential = await _sequential({"socket": _socket_ask(link), front: _http_ask(connection)}, plan)
    streams = {}
    for schema, document in STREAMS.items() if front == "http" else ():
        async with _connected(service.port, plan.num_together) as connections:
            streams[schema] = await _stream(schema, document, connections, plan, service.front_process)
    await link.close()
    return {"alone": sequential, "together": concurrent}, streams


@contextlib.asynccontextmanager
async def _connected(port: int, number: int) -> AsyncIterator[list[Connection]]:
    """New connections, because a front closes those on which nothing comes."""
    connections = [await Connection.connect(port) for _ in range(number)]
    yield connections
    for connection in connections:
        connection.close()


async def _sequential(asks: Mapping[str, Ask], plan: Plan) -> dict[str, list[Called]]:
    """Make one call at a time, in turns, so that all paths meet the same conditions."""
    called: dict[str, list[Called]] = {path: [] for path in asks}
    for number in range(plan.num_calls):
        for path, ask in asks.items():
            called[path].append(await ask(f"{path}-a{number}", plan.num_tokens))
    return called


async def _concurrent(path: str, asks: Sequence[Ask], plan: Plan) -> list[Called]:
    called: list[Called] = []
    await asyncio.gather(*(ask(f"{path}-w{number}", 2) for number, ask in enumerate(asks)))
    for turn in range(plan.num_rounds):
        names = [f"{path}-{turn}.{number}" for number in range(len(asks))]
        calls = (ask(name, plan.num_tokens) for name, ask in zip(names, asks, strict=True))
        called += await asyncio.gather(*calls)
    return called


def _http_ask(connection: Connection) -> Ask:
    async def ask(name: str, num_tokens: int) -> Called:
        done = await connection.ask(_tgi(num_tokens, stream=False), name)
        return Called(done.request_id, done.ended_s - done.asked_s)

    return ask


def _socket_ask(link: EngineLink) -> Ask:
    async def ask(name: str, num_tokens: int) -> Called:
        request = GenerationRequest(name, (1, 2, 3), SamplingParams(num_tokens))
        started_s = time.monotonic()
        with link.submit([request]) as events:
            while not any(isinstance(event, EndEvent) for event in await events.next()):
                pass
        return Called(name, time.monotonic() - started_s)

    return ask


async def _stream(
    schema: str,
    document: Callable[[int], Any],
    connections: Sequence[Connection],
    plan: Plan,
    process: psutil.Process,
) -> tuple[list[TimedExchange], float]:
    """Run streams at the same time; also returns the front's processor time a token, in microseconds."""
    num_tokens = int(plan.stream_s * TOKENS_PER_S)
    names = [f"{schema}-s{number}" for number in range(len(connections))]
    pairs = zip(names, connections, strict=True)
    used = process.cpu_times()
    done = await asyncio.gather(*(one.ask(document(num_tokens), name) for name, one in pairs))
    now = process.cpu_times()
    cpu_s = now.user + now.system - used.user - used.system
    return done, 1e6 * cpu_s / (num_tokens * len(connections))
