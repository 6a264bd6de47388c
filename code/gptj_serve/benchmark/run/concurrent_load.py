"""Makes many requests at once: closed loops of clients that wait for answers, or open loops of arrivals."""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from gptj_serve.benchmark.results import Cell, Level, Run
from gptj_serve.benchmark.run.schedule import PlannedRequest
from gptj_serve.benchmark.run.session import Session, as_run, check_alive
from gptj_serve.benchmark.targets.target import Query

MIN_REQUESTS = 8
"""How many requests a level has at least: a few clients ask more often."""

LOAD = "throughput"


def num_requests(level: Level, per_client: int, seconds: float) -> int:
    """How many requests a level has: the expected arrivals, or those of all clients."""
    if level.rate is not None:
        return max(1, round(level.rate * seconds))
    assert level.concurrency is not None
    return level.concurrency * max(per_client, -(-MIN_REQUESTS // level.concurrency))


def arrivals(level: Level, number: int, seed: int) -> list[float]:
    """When requests arrive, in seconds after the beginning: a Poisson process with the level's rate."""
    assert level.rate is not None
    rng = random.Random(f"{seed}/{level.rate}")
    return list(itertools.accumulate(rng.expovariate(level.rate) for _ in range(number)))


@dataclass(frozen=True, slots=True)
class Burst:
    """The requests of a level to one target.

    Attributes:
        target: The target's name.
        cell: The size of each request.
        level: How the requests come.
        number: How many there are.
    """

    target: str
    cell: Cell
    level: Level
    number: int

    @property
    def tokens(self) -> int:
        """How many tokens are to be generated."""
        return self.number * self.cell.output_tokens


async def throughput(session: Session, bursts: Sequence[Burst], streaming: Collection[str]) -> None:
    """Make one burst after the other; the runs of a burst are kept all together or not at all."""
    for burst in bursts:
        started_s, name = time.monotonic(), burst.target
        runs = await run_burst(session, burst, stream=name in streaming)
        took_s = time.monotonic() - started_s
        session.progress.advance(name, burst.tokens, took_s, f"{LOAD} {burst.level} {name}")
        session.results.add(runs)
        check_alive(name, runs)  # it looks at all of them, because a full queue answers 503, too


async def run_burst(session: Session, burst: Burst, *, stream: bool) -> list[Run]:
    """Make the requests; returns them in order."""
    name, cell, level = burst.target, burst.cell, burst.level
    target, runs = session.targets[name], []

    async def ask(which: int, late_s: float = 0.0) -> None:
        step = PlannedRequest(LOAD, name, cell, which)
        prompt = session.prompt(name, cell, which, load=f"{LOAD}/{level}")
        answer = await target.ask(Query(prompt, cell.output_tokens, stream))
        runs.append(as_run(step, answer, level=level, late_s=late_s))

    # these requests open the connections before the clock runs
    warm = min(burst.number, level.concurrency or MIN_REQUESTS)
    await asyncio.gather(*(target.ask(Query(" the", 1)) for _ in range(warm)))
    if level.rate is None:
        await _closed_loop(ask, level.concurrency or 1, burst.number)
    else:
        await open_loop(ask, arrivals(level, burst.number, session.seed))
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
        times_s: When to ask, in seconds from now.
    """
    begun_s = time.monotonic()

    async def arrive(which: int, at_s: float) -> None:
        await asyncio.sleep(at_s - (time.monotonic() - begun_s))
        # a client that is late itself must not make the server look better
        await ask(which, max(0.0, time.monotonic() - begun_s - at_s))

    await asyncio.gather(*(arrive(which, at_s) for which, at_s in enumerate(times_s)))
