"""Many clients, for a long time, doing everything at once: is every answer the one its prompt gets alone?

Usage: scripts/benchmark soak --url URL [--clients 64] [--seconds 600] [--pid PID] [--out F]

Each client mixes short, long, streamed, abandoned and bad requests against a running HTTP front. Greedy
answers are compared with those that the prompts got alone before. What an overloaded server refuses or
does not finish in time is counted, not wrong: a longer GPTJ_REQUEST_TIMEOUT_S lets it finish. With the pid
of ``serve``, memory and open files of all its processes are looked at before, meanwhile and after. Exit
code 0: nothing was lost or crossed, and no sequence and no open file is left.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from gptj_serve.benchmark.surroundings import surroundings

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

TIMEOUT_S = 600.0
"""An answer that takes longer is lost."""


@dataclass(slots=True)
class Run:
    """What all clients work with.

    Attributes:
        alone: Answers by prompt and number of tokens.
        until_s: When no client begins anything more, on the monotonic clock.
        counts: What was asked, by kind; and what was refused or late.
        wrong: What was lost or crossed, in words.
        samples: Of the server's processes.
    """

    alone: dict[tuple[str, int], str]
    until_s: float
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Any] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark soak", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="where the HTTP front listens")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pid", type=int, help="of serve, to look at its processes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = {**surroundings(), **asyncio.run(soak(args.url, args.clients, args.seconds, args.pid))}
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if is_right(report) else 1


def is_right(report: dict[str, Any]) -> bool:
    """Nothing was lost or crossed, and no sequence or open file is left."""
    before, after = report["resources_before"], report["resources_after"]
    has_leak = before is not None and after["open_files"] > before["open_files"]
    return not report["wrong"] and report["sequences_left"] == 0 and not has_leak


async def soak(url: str, num_clients: int, seconds: float, pid: int | None) -> dict[str, Any]:
    """Run all clients and sum up."""
    run = Run(await _answers_alone(url), time.monotonic() + seconds)
    before = await _resources_at_rest(pid)
    watch = asyncio.create_task(_watch(run, pid, seconds))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
        await asyncio.gather(*(_client(client, random.Random(seed), run) for seed in range(num_clients)))
    watch.cancel()
    after = await _resources_at_rest(pid)
    metrics = (await _get(url, "/metrics")).text
    return {
        "engine": next(line for line in metrics.splitlines() if line.startswith("gptj_engine_info")),
        "clients": num_clients,
        "seconds": seconds,
        "counts": dict(run.counts),
        "wrong": run.wrong[:20],
        "sequences_left": sum(_metric(metrics, f"gptj_sequences_{name}") for name in ("running", "waiting")),
        "tokens": _metric(metrics, "gptj_generation_tokens_total"),
        "preemptions": _metric(metrics, "gptj_preemptions_total"),
        "resources_before": before,
        "resources_meanwhile": run.samples,
        "resources_after": after,
    }


async def _answers_alone(url: str) -> dict[tuple[str, int], str]:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        return {
            (prompt, length): await _whole(client, prompt, length) for prompt in PROMPTS for length in LENGTHS
        }


async def _get(url: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        return await client.get(path)


async def _watch(run: Run, pid: int | None, seconds: float) -> None:
    """Look at the processes now and then."""
    for _ in range(0 if pid is None else 9):
        await asyncio.sleep(seconds / 10)
        run.samples.append(_resources(pid))


async def _client(client: httpx.AsyncClient, rng: random.Random, run: Run) -> None:
    while time.monotonic() < run.until_s:
        kind = rng.choices(("whole", "stream", "abandoned", "bad"), (4, 4, 2, 1))[0]
        key = rng.choice(PROMPTS), rng.choice(LENGTHS)
        try:
            if kind == "bad":
                answer = await client.post("/invocations", json=rng.choice(BAD))
                if answer.status_code != 400:
                    run.wrong.append(f"bad request: {answer.status_code}")
            elif kind == "abandoned":
                await _abandon(client, key[0], rng.random())
            else:
                text = await (_whole if kind == "whole" else _stream)(client, *key)
                if text != run.alone[key]:
                    run.wrong.append(f"{kind} {key}: {text!r}")
            run.counts[kind] += 1
        except Overloaded as error:
            run.counts[str(error)] += 1
            await asyncio.sleep(rng.random())
        except httpx.HTTPError as error:
            run.wrong.append(f"{kind}: {type(error).__name__} {error}")


class Overloaded(Exception):
    """The server had no room ("refused") or no time ("late")."""


def _check_load(status: int) -> None:
    if status in (429, 504):
        raise Overloaded("refused" if status == 429 else "late")


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
                    raise Overloaded("late")
                text += event["token"]["text"] if "token" in event else f"error {event['error']}"
    return text


async def _abandon(client: httpx.AsyncClient, prompt: str, after_s: float) -> None:
    try:
        async with client.stream("POST", "/invocations", json=_document(prompt, 500, True)) as answer:
            _check_load(answer.status_code)
            await asyncio.wait_for(answer.aread(), after_s)
    except asyncio.TimeoutError:
        return


async def _resources_at_rest(pid: int | None) -> dict[str, Any] | None:
    # the front has to see the ends of connections, and the engine tells its figures four times a second
    await asyncio.sleep(2)
    return _resources(pid)


def _resources(pid: int | None) -> dict[str, Any] | None:
    """Memory (resident) and open files of ``serve`` and all its processes."""
    if pid is None:
        return None
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return {
        # the launcher, the engine and the front by their modules
        "rss_mib": {one.cmdline()[2]: round(one.memory_info().rss / (1 << 20), 1) for one in processes},
        "open_files": sum(one.num_fds() for one in processes),
    }


def _metric(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0] == name)


if __name__ == "__main__":
    sys.exit(main())
