"""Runs many clients for a long time, and compares every answer with the one that its prompt gets alone.

Usage: scripts/benchmark soak --url URL [--clients 64] [--seconds 600] [--pid PID] [--attacks tests] [--out F]

Each client mixes short, long, streamed, abandoned and bad requests against a running HTTP front. Greedy
answers are compared with those that the prompts got alone before. What an overloaded server refuses or does
not finish in time is counted, but it is not wrong: a longer GPTJ_REQUEST_TIMEOUT_S lets it finish. With the
pid of ``serve``, memory and open files of all its processes are looked at before, meanwhile and after. The
exit code is 0 if nothing was lost or crossed, and no sequence and no open file is left.

``--attacks`` names the folder that holds the package of attacks. Then a tenth of what clients do in the
second half are attacks. ``/ping``, which a process of its own measures, must take at most twice as long in
that half (99th percentile) as in the first, and memory must not grow. Attackers have processes of low
priority, which leave the processors to the service: outside of a test they would have machines of their own.
"""

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import importlib
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from gptj_serve.benchmark.facts.surroundings import surroundings

PROMPTS = tuple(
    f"{start} {end}" for start in ("In the", "And he", "A hacker", "The king") for end in ("", "day", "of")
)
LENGTHS = (1, 8, 24, 60)
BAD = (
    {"inputs": ""},
    {"inputs": "a", "parameters": {"top_p": 2}},
    {"prompt": "a", "n": 0},
    [1],
    {"inputs": 1},
)

KINDS = {"whole": 4.0, "stream": 4.0, "abandoned": 2.0, "bad": 1.0}
ATTACKS_WEIGHT = sum(KINDS.values()) / 9
"""With this weight, a tenth of all that clients do are attacks."""
PING_EVERY_S = 0.05
MAX_PING_RATIO = 2.0
MAX_GROWTH_MIB = 128.0
"""How much memory may grow from the end of the first half to the end, for buffers and the allocator."""
REST_S = 60.0
"""How long the server has to end what attacks leave behind: silent connections may take half a minute."""

TIMEOUT_S = 600.0
"""An answer that takes longer counts as lost."""

NUM_ATTACKERS = 6
ATTACKERS_NICENESS = 19
Attack = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class SoakState:
    """What all clients work with.

    Attributes:
        expected: The answers that prompts get alone, by prompt and number of tokens.
        until_s: When clients begin nothing more, on the monotonic clock.
        counts: How many requests of each kind were made, and how many were refused or late.
        wrong: What was lost or crossed, in words.
        samples: Memory and open files of the server's processes at intervals.
        attack: Makes the attack that a random number chooses; None if there are no attacks.
        attacks_from_s: When attacks begin, on the monotonic clock.
        got_through: What attacks found, in words.
    """

    expected: dict[tuple[str, int], str]
    until_s: float
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Any] = field(default_factory=list)
    attack: Attack | None = None
    attacks_from_s: float = 0.0
    got_through: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark soak", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="where the HTTP front listens")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pid", type=int, help="of serve, to look at its processes")
    parser.add_argument("--attacks", type=Path, help="folder with the package attacks: mix them in")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    with attackers(args.url, args.attacks) if args.attacks else contextlib.nullcontext() as attack:
        found = asyncio.run(soak(args.url, args.clients, args.seconds, args.pid, attack))
    report = {**surroundings(), **found}
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if is_right(report) else 1


def is_right(report: dict[str, Any]) -> bool:
    """Whether nothing was lost or crossed, no sequence or open file is left, and attacks cost little."""
    before, after = report["resources_before"], report["resources_after"]
    has_leak = before is not None and after["open_files"] > before["open_files"]
    ping, growth_mib = report.get("ping_p99_ms"), report.get("growth_mib")
    is_late = ping is not None and ping["with_attacks"] > MAX_PING_RATIO * ping["without"]
    has_grown = growth_mib is not None and growth_mib > MAX_GROWTH_MIB
    return not (report["wrong"] or report["sequences_left"] or has_leak or is_late or has_grown)


@contextlib.contextmanager
def attackers(url: str, folder: Path) -> Iterator[Attack]:
    """Have processes that attack, while this is entered.

    Args:
        url: The service's address.
        folder: The folder that holds the package ``attacks``.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(NUM_ATTACKERS, spawn, _be_nice) as pool:

        async def attack(chance: float) -> None:
            await asyncio.wrap_future(pool.submit(try_attack, url, str(folder.resolve()), chance))

        yield attack


def _be_nice() -> None:
    os.nice(ATTACKERS_NICENESS)
    sys.stdout = sys.stderr  # attacks print what they see


def try_attack(url: str, folder: str, chance: float) -> None:
    """Try one of the attacks that take about a second, without its own bound on memory.

    Others attack at the same time, and their memory would count.

    Args:
        url: The service's address.
        folder: The folder that holds the package ``attacks``.
        chance: Chooses the attack, 0..1 (1 excluded).

    Raises:
        GotThrough: The attack found that a promise is broken.
    """
    target, chosen = _attacks_on(url, folder)
    one = chosen[int(chance * len(chosen))]
    try:
        one.run(target)
    except (AssertionError, OSError) as error:
        raise GotThrough(f"{one.name}: {type(error).__name__}: {str(error)[:200]}") from None


@functools.cache
def _attacks_on(url: str, folder: str) -> tuple[Any, list[Any]]:
    sys.path.insert(0, folder)
    package = importlib.import_module("attacks")
    target = package.Target.of(url, None)
    return target, [one for one in package.ALL if one.is_cheap and target.front in one.fronts]


async def soak(
    url: str,
    num_clients: int,
    seconds: float,
    pid: int | None,
    attack: Attack | None = None,
) -> dict[str, Any]:
    """Run all clients and sum up."""
    expected = await _expected_answers(url)
    before = await _resources_at_rest(pid)
    started_s = time.monotonic()
    half_s, until_s = started_s + seconds / 2, started_s + seconds
    run = SoakState(expected, until_s, attack=attack, attacks_from_s=half_s)
    watch = asyncio.create_task(_watch(run, pid, seconds))
    limits = httpx.Limits(max_connections=None)
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pings = pool.submit(_pings, url, until_s)
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
            dice = [random.Random(seed) for seed in range(num_clients)]
            await asyncio.gather(*(_client(client, one, run) for one in dice))
        watch.cancel()
        split = _percentiles(await asyncio.wrap_future(pings), half_s)
    after = await _resources_at_rest(pid, before)
    metrics = httpx.get(f"{url.rstrip('/')}/metrics", timeout=TIMEOUT_S).text
    return {
        "engine": next(line for line in metrics.splitlines() if line.startswith("gptj_engine_info")),
        "clients": num_clients,
        "seconds": seconds,
        "counts": dict(run.counts),
        "wrong": run.wrong[:20],
        "sequences_left": sum(_metric(metrics, f"gptj_sequences_{name}") for name in ("running", "waiting")),
        "tokens": _metric(metrics, "gptj_generation_tokens_total"),
        "preemptions": _metric(metrics, "gptj_preemptions_total"),
        **(_of_attacks(run, split, after) if attack else {}),
        "resources_before": before,
        "resources_meanwhile": run.samples,
        "resources_after": after,
    }


def _of_attacks(run: SoakState, split: dict[str, float], after: dict[str, Any] | None) -> dict[str, Any]:
    """What the attacks achieved; ``got_through`` also has bounds on time that a busy machine broke."""
    growth_mib = None
    if after is not None and len(run.samples) >= 5:
        half_mib = sum(run.samples[4]["rss_mib"].values())  # the fifth of ten is the end of the first half
        growth_mib = round(sum(after["rss_mib"].values()) - half_mib, 1)
    through = dict(collections.Counter(run.got_through).most_common(20))
    return {"ping_p99_ms": split, "growth_mib": growth_mib, "got_through": through}


def _pings(url: str, until_s: float) -> list[tuple[float, float]]:
    """When each ``/ping`` was asked, on the clock that all processes share, and how long it took."""
    found = []
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        while (asked_s := time.monotonic()) < until_s:
            client.get("/ping")
            found.append((asked_s, time.monotonic() - asked_s))
            time.sleep(PING_EVERY_S)
    return found


def _percentiles(pings: list[tuple[float, float]], half_s: float) -> dict[str, float]:
    """The 99th percentiles before and after a moment, in milliseconds."""
    halves = {
        "without": [seconds for asked_s, seconds in pings if asked_s < half_s],
        "with_attacks": [seconds for asked_s, seconds in pings if asked_s >= half_s],
    }
    return {
        name: round(1000 * sorted(seconds)[int(0.99 * (len(seconds) - 1))], 1) if seconds else 0.0
        for name, seconds in halves.items()
    }


async def _expected_answers(url: str) -> dict[tuple[str, int], str]:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        return {
            (prompt, length): await _whole(client, prompt, length) for prompt in PROMPTS for length in LENGTHS
        }


async def _watch(run: SoakState, pid: int | None, seconds: float) -> None:
    """Look at the processes nine times, at equal intervals."""
    for _ in range(0 if pid is None else 9):
        await asyncio.sleep(seconds / 10)
        run.samples.append(_resources(pid))


async def _client(client: httpx.AsyncClient, rng: random.Random, run: SoakState) -> None:
    while time.monotonic() < run.until_s:
        kind = _kind(rng, run)
        key = rng.choice(PROMPTS), rng.choice(LENGTHS)
        try:
            if kind == "attack":
                assert run.attack is not None
                await run.attack(rng.random())
            elif kind == "bad":
                answer = await client.post("/invocations", json=rng.choice(BAD))
                if answer.status_code != 400:
                    run.wrong.append(f"bad request: {answer.status_code}")
            elif kind == "abandoned":
                await _abandon(client, key[0], rng.random())
            else:
                text = await (_whole if kind == "whole" else _stream)(client, *key)
                if text != run.expected[key]:
                    run.wrong.append(f"{kind} {key}: {text!r}")
            run.counts[kind] += 1
        except ServerBusy as error:
            run.counts[str(error)] += 1
            await asyncio.sleep(rng.random())
        except GotThrough as error:
            run.counts[kind] += 1
            run.got_through.append(str(error))
        except httpx.HTTPError as error:
            run.wrong.append(f"{kind}: {type(error).__name__} {error}")


def _kind(rng: random.Random, run: SoakState) -> str:
    kinds = dict(KINDS)
    if run.attack is not None and time.monotonic() >= run.attacks_from_s:
        kinds["attack"] = ATTACKS_WEIGHT
    return rng.choices(list(kinds), list(kinds.values()))[0]


class GotThrough(Exception):
    """An attack found that a promise is broken."""


class ServerBusy(Exception):
    """The server had no room ("refused") or no time ("late")."""


def _check_load(status: int) -> None:
    if status in (429, 504):
        raise ServerBusy("refused" if status == 429 else "late")


def _document(prompt: str, length: int, stream: bool) -> dict[str, Any]:
    return {"inputs": prompt, "parameters": {"max_new_tokens": length}, "stream": stream}


async def _whole(client: httpx.AsyncClient, prompt: str, length: int) -> str:
    answer = await client.post("/invocations", json=_document(prompt, length, False))
    _check_load(answer.status_code)
    return (
        str(answer.json()[0]["generated_text"])
        if answer.status_code == 200
        else f"status {answer.status_code}"
    )


async def _stream(client: httpx.AsyncClient, prompt: str, length: int) -> str:
    text = ""
    async with client.stream("POST", "/invocations", json=_document(prompt, length, True)) as answer:
        _check_load(answer.status_code)
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if (event.get("details") or {}).get("finish_reason") == "deadline":
                    raise ServerBusy("late")
                text += event["token"]["text"] if "token" in event else f"error {event['error']}"
    return text


async def _abandon(client: httpx.AsyncClient, prompt: str, after_s: float) -> None:
    try:
        async with client.stream("POST", "/invocations", json=_document(prompt, 500, True)) as answer:
            _check_load(answer.status_code)
            await asyncio.wait_for(answer.aread(), after_s)
    except asyncio.TimeoutError:
        return


async def _resources_at_rest(pid: int | None, before: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Look when it is quiet; with ``before``, wait until no more files are open than there were then."""
    # the front has to notice that connections ended, and the engine reports its figures four times a second
    await asyncio.sleep(2)
    give_up_s = time.monotonic() + REST_S
    while (now := _resources(pid)) and before and now["open_files"] > before["open_files"]:
        if time.monotonic() > give_up_s:
            break
        await asyncio.sleep(1)
    return now


def _resources(pid: int | None) -> dict[str, Any] | None:
    """Memory (resident) and open files of ``serve`` and all its processes."""
    if pid is None:
        return None
    rss: collections.Counter[str] = collections.Counter()
    num_files = 0
    for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
        # a process that parses one body may have ended meanwhile
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            rss[_name(one.cmdline())] += one.memory_info().rss
            num_files += one.num_fds()
    return {
        "rss_mib": {name: round(num_bytes / (1 << 20), 1) for name, num_bytes in rss.items()},
        "open_files": num_files,
    }


def _name(command: Sequence[str]) -> str:
    """Launcher, engine and front are named by their modules, other programs by their files."""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1]
    scripts = [Path(word).name for word in command[1:] if not word.startswith("-")]
    return scripts[0] if scripts else Path(command[0]).name


def _metric(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0] == name)
