"""Many clients, for a long time, doing everything at once: is every answer the one its prompt gets alone?

Usage: python -m gptj_serve.benchmark.soak --url URL [--clients 64] [--seconds 600] [--pid PID] [--out F]

Each client mixes short, long, streamed, abandoned and bad requests against a running HTTP front. Greedy
answers are compared with those that the prompts got alone before. What an overloaded server refuses or
does not finish in time is counted, not wrong: a longer GPTJ_REQUEST_TIMEOUT_S lets it finish. With the pid
of ``serve``, memory and open files of all its processes are looked at before and after. Exit code 0:
nothing was lost or crossed, and nothing is left in the engine.
"""

import argparse
import asyncio
import collections
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gptj_serve.benchmark.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="where the HTTP front listens")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--pid", type=int, help="of serve, to look at its processes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    report = asyncio.run(soak(args.url, args.clients, args.seconds, args.pid))
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))
    return 0 if not report["wrong"] and report["sequences_left"] == 0 else 1


async def soak(url: str, num_clients: int, seconds: float, pid: int | None) -> dict[str, Any]:
    """Run all clients and sum up."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        alone = {
            (prompt, length): await _whole(client, prompt, length) for prompt in PROMPTS for length in LENGTHS
        }
        before = _resources(pid)
        counts: collections.Counter[str] = collections.Counter()
        wrong: list[str] = []
        until_s = time.monotonic() + seconds
        await asyncio.gather(
            *(
                _client(client, random.Random(seed), until_s, alone, counts, wrong)
                for seed in range(num_clients)
            )
        )
        await asyncio.sleep(2)
        left = _metric((await client.get("/metrics")).text, "gptj_sequences_running")
        left += _metric((await client.get("/metrics")).text, "gptj_sequences_waiting")
        return {
            "clients": num_clients,
            "seconds": seconds,
            "counts": dict(counts),
            "wrong": wrong[:20],
            "sequences_left": left,
            "resources_before": before,
            "resources_after": _resources(pid),
        }


async def _client(
    client: httpx.AsyncClient,
    rng: random.Random,
    until_s: float,
    alone: dict[tuple[str, int], str],
    counts: collections.Counter[str],
    wrong: list[str],
) -> None:
    while time.monotonic() < until_s:
        kind = rng.choices(("whole", "stream", "abandoned", "bad"), (4, 4, 2, 1))[0]
        key = rng.choice(PROMPTS), rng.choice(LENGTHS)
        try:
            if kind == "bad":
                answer = await client.post("/invocations", json=rng.choice(BAD))
                if answer.status_code != 400:
                    wrong.append(f"bad request: {answer.status_code}")
            elif kind == "abandoned":
                await _abandon(client, key[0], rng.random())
            else:
                text = await (_whole if kind == "whole" else _stream)(client, *key)
                if text != alone[key]:
                    wrong.append(f"{kind} {key}: {text!r}")
            counts[kind] += 1
        except Overloaded as error:
            counts[str(error)] += 1
            await asyncio.sleep(rng.random())
        except httpx.HTTPError as error:
            wrong.append(f"{kind}: {type(error).__name__} {error}")


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


def _resources(pid: int | None) -> dict[str, Any] | None:
    if pid is None:
        return None
    parent = psutil.Process(pid)
    processes = [parent, *parent.children(recursive=True)]
    return {
        "rss_mib": round(sum(one.memory_info().rss for one in processes) / (1 << 20)),
        "open_files": sum(one.num_fds() for one in processes),
        "processes": len(processes),
    }


def _metric(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.split(" ")[0] == name)


if __name__ == "__main__":
    sys.exit(main())
