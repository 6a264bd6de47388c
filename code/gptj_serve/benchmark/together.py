"""Many requests at once: clients that wait for their answers, or arrivals that wait for nobody."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from gptj_serve.benchmark.results import Cell, Level, Run
from gptj_serve.benchmark.schedule import Step
from gptj_serve.benchmark.session import Session, as_run, check_alive
from gptj_serve.benchmark.target import Ask

MIN_REQUESTS = 8
"""Of a level: a few clients ask more often."""

LOAD = "throughput"


def num_requests(level: Level, per_client: int, seconds: float) -> int:
    """How many requests a level has: expected arrivals, or those of all clients."""
    if level.rate is not None:
        return max(1, round(level.rate * seconds))
    assert level.concurrency is not None
    return level.concurrency * max(per_client, -(-MIN_REQUESTS // level.concurrency))


def arrivals(level: Level, number: int, seed: int) -> list[float]:
    """Seconds after the beginning at which requests arrive, as a Poisson process of a rate does."""
    assert level.rate is not None
    rng, now_s, found = random.Random(f"{seed}/{level.rate}"), 0.0, []
    for _ in range(number):
        now_s += rng.expovariate(level.rate)
        found.append(now_s)
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """What every level is of.

    Attributes:
        cell: What each request is of.
        per_client: Requests of each client.
        open_s: How long requests arrive at a rate, in seconds.
    """

    cell: Cell
    per_client: int
    open_s: float


async def throughput(
    session: Session, load: Load, levels: Sequence[Level], streaming: Collection[str]
) -> None:
    """Level after level, in each one target after the other. A level counts as a whole or not at all."""
    cell = load.cell
    for level in levels:
        number = num_requests(level, load.per_client, load.open_s)
        for name, target in session.targets.items():
            is_too_much = (level.concurrency or 1) > target.max_together
            if is_too_much or is_done(session.results.runs, name, cell, level):
                continue
            started_s = time.monotonic()
            runs = await _level(session, name, cell, level, number, name in streaming)
            took_s = time.monotonic() - started_s
            session.progress.advance(name, number * cell.output_tokens, took_s, f"{LOAD} {level} {name}")
            session.results.add(runs)
            check_alive(session.results.runs, name)


async def burst(session: Session, name: str, cell: Cell, level: Level) -> None:
    """A level that is not kept."""
    await _level(session, name, cell, level, level.concurrency or 1, stream=False)


def is_done(runs: Sequence[Run], name: str, cell: Cell, level: Level) -> bool:
    """There are runs of a level."""
    wanted = (LOAD, name, cell, level)
    return any((run.load, run.target, run.cell, run.level) == wanted for run in runs)


async def _level(
    session: Session, name: str, cell: Cell, level: Level, number: int, stream: bool
) -> list[Run]:
    target, runs = session.targets[name], []

    async def ask(which: int, late_s: float = 0.0) -> None:
        step = Step(LOAD, name, cell, which)
        prompt = session.prompt(name, cell, which, load=f"{LOAD}/{level}")
        answer = await target.ask(Ask(prompt, cell.output_tokens, stream))
        runs.append(as_run(step, answer, level=level, late_s=late_s))

    # connections are there before the clock runs
    warm = min(number, level.concurrency or MIN_REQUESTS)
    await asyncio.gather(*(target.ask(Ask(" the", 1)) for _ in range(warm)))
    if level.rate is None:
        await _closed_loop(ask, level.concurrency or 1, number)
    else:
        await open_loop(ask, arrivals(level, number, session.seed))
    return sorted(runs, key=lambda run: run.number)


async def _closed_loop(ask: Callable[[int], Awaitable[None]], num_clients: int, number: int) -> None:
    waiting = iter(range(number))

    async def client() -> None:
        for which in waiting:
            await ask(which)

    await asyncio.gather(*(client() for _ in range(num_clients)))


async def open_loop(ask: Callable[[int, float], Awaitable[None]], times_s: Sequence[float]) -> None:
    """Ask at given times, whether or not earlier requests were answered.

    Args:
        ask: Takes a request's number and how many seconds late it is sent.
        times_s: Seconds from now.
    """
    begun_s = time.monotonic()

    async def arrive(which: int, at_s: float) -> None:
        await asyncio.sleep(at_s - (time.monotonic() - begun_s))
        # a client that is late itself must not make the server look better
        await ask(which, max(0.0, time.monotonic() - begun_s - at_s))

    await asyncio.gather(*(arrive(which, at_s) for which, at_s in enumerate(times_s)))
