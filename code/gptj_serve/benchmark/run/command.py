"""``scripts/benchmark run``: starts servers where that is needed, measures, and keeps every run."""

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import uvloop

from gptj_serve.benchmark.facts.bandwidth import measure_in_child
from gptj_serve.benchmark.facts.memory import MemoryWatch
from gptj_serve.benchmark.facts.model import model_facts
from gptj_serve.benchmark.facts.surroundings import surroundings
from gptj_serve.benchmark.peers import PEERS, missing, process_target, vllm_server
from gptj_serve.benchmark.results import Level, ResultsFile, Run, read
from gptj_serve.benchmark.run.concurrent_load import Burst, run_burst, throughput
from gptj_serve.benchmark.run.options import Options, parse
from gptj_serve.benchmark.run.progress import Progress
from gptj_serve.benchmark.run.rotation import Left, Turn, left, turns
from gptj_serve.benchmark.run.sequential_load import first_request, one_by_one, warm_up
from gptj_serve.benchmark.run.session import Session, TargetGone, vocabularies
from gptj_serve.benchmark.targets.http import HttpTarget, engine_facts
from gptj_serve.benchmark.targets.sagemaker import SageMakerTarget, connect, instance_type
from gptj_serve.benchmark.targets.spawn import Spawn, Spawned, spawned
from gptj_serve.benchmark.targets.target import Target
from gptj_serve.errors import StartupError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
MEMORY_CONCURRENCY = 8
"""How many requests run at once while memory is watched."""

MAX_NAMED = 10


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = _present(parse(arguments))
    try:
        with _interruptible():
            return measure(options)
    except (StartupError, TargetGone) as error:
        print(f"scripts/benchmark: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"interrupted; the same command goes on from {options.out}", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a `KeyboardInterrupt`, and ignore both from then on.

    `timeout` sends its signal twice, and people press Ctrl-C again; neither may disturb the clean-up.
    """

    def interrupt(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            for number, handler in before.items():
                signal.signal(number, handler)


def _present(options: Options) -> Options:
    """The options without the peers that are not installed."""
    absent = {
        spawn.name: why
        for spawn in options.spawns
        if spawn.engine in PEERS and (why := missing(spawn.engine)) is not None
    }
    for name, why in absent.items():
        print(f"{name} is skipped: {why}", file=sys.stderr)
    present = tuple(spawn for spawn in options.spawns if spawn.name not in absent)
    return replace(options, spawns=present, skipped=absent)


def measure(options: Options) -> int:
    """Measure what is not measured yet; returns the exit code."""
    with ResultsFile.open(options.out, _head(options), retry_failed=options.retry_failed) as results:
        todo = [(turn, left(turn, options, results)) for turn in turns(options)]
        progress = Progress(sum((wanted.tokens for _, wanted in todo), Counter()))
        with contextlib.closing(progress):
            for turn, wanted in todo:
                if wanted.names:
                    _take_turn(turn.only(wanted.names), wanted, options, results, progress)
            if "load" in options.loads:
                _starts(options, results, progress)
    return _sum_up(options, results)


def _head(options: Options) -> dict[str, Any]:
    """The head of a file of results, as far as it is known before anything is measured."""
    known = surroundings()
    targets: dict[str, Any] = {
        name: {"kind": "url", "url": url, **engine_facts(url), **_runs_on(options, _unknown_host(url))}
        for name, url in options.urls.items()
    }
    targets |= {
        name: {"kind": "endpoint", "endpoint": endpoint, **_runs_on(options, instance_type(endpoint))}
        for name, endpoint in options.endpoints.items()
    }
    targets |= {spawn.name: spawn.facts(os.environ) for spawn in options.spawns}
    return {
        **known,
        "commit": options.overrides.get("commit", known["commit"]),
        "model": None if options.model is None else model_facts(options.model, options.model_as_given),
        "seed": options.seed,
        "read_bytes_per_s": _read_bytes_per_s(options),
        "targets": targets,
        "skipped": options.skipped,
    }


def _runs_on(options: Options, found: str | None) -> dict[str, str]:
    """The hardware of a server that we do not start; nothing where that is this machine."""
    known = options.overrides.get("hardware", found)
    return {} if known is None else {"hardware": known}


def _unknown_host(url: str) -> str | None:
    """What to call the unknown hardware of another machine; None for this machine."""
    host = urlsplit(url).hostname or ""
    return None if host in ("localhost", "::1") or host.startswith("127.") else f"unknown hardware ({host})"


def _read_bytes_per_s(options: Options) -> float | None:
    """The memory's speed: as given, as measured before, or measured now, while the GPU has room."""
    if "read_bytes_per_s" in options.overrides:
        return float(options.overrides["read_bytes_per_s"])
    if options.out.exists():
        before = read(options.out)
        # a file in which nothing was measured may be another machine's
        if not before.is_empty and (known := before.head.get("read_bytes_per_s")):
            return float(known)
    return measure_in_child() if options.spawns else None


@contextlib.contextmanager
def _running(
    turn: Turn, options: Options, results: ResultsFile, progress: Progress
) -> Iterator[tuple[dict[str, Target], dict[str, Spawned]]]:
    """A turn's targets by name, and those of them that are started here.

    They are started one after the other, because each looks at how much memory is left.
    """
    targets: dict[str, Target] = {
        name: HttpTarget(name, url, options.timeout_s) for name, url in turn.urls.items()
    }
    targets |= {
        name: SageMakerTarget(name, endpoint, connect(options.timeout_s))
        for name, endpoint in turn.endpoints.items()
    }
    started: dict[str, Spawned] = {}
    with contextlib.ExitStack() as stack:
        try:
            for spawn in turn.spawns:
                progress.say(f"starting {spawn.name}")
                one = stack.enter_context(_start(spawn, options, watch="memory" in options.loads))
                started[spawn.name] = one
                _add_facts(results, spawn.name, one.facts)
                # beside another server a start is slower
                if "load" in options.loads and len(turn.spawns) == 1:
                    results.starts.append({"target": spawn.name, **one.start})
                targets[spawn.name] = one.target
            yield targets, started
        finally:
            for one in started.values():  # so that all of them end at the same time
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one.pid, signal.SIGTERM)


def _add_facts(results: ResultsFile, name: str, facts: Mapping[str, Any]) -> None:
    """Keep what a server says of itself.

    Raises:
        StartupError: It runs another engine than before.
    """
    known = results.head["targets"][name]
    before, now = known.get("engine"), facts.get("engine")
    if before and now and before != now:
        raise StartupError(f"{name}: the runs so far are of engine {before}, and it has started {now}")
    known |= facts


def _start(
    spawn: Spawn, options: Options, *, watch: bool = False
) -> contextlib.AbstractContextManager[Spawned]:
    """Start a server or a peer; with ``watch`` its memory is watched."""
    assert options.model is not None
    if spawn.engine == "vllm":
        return vllm_server.started(
            spawn,
            options.model,
            max_context=options.longest,
            timeout_s=options.timeout_s,
            watch_memory=watch,
        )
    if spawn.engine in PEERS:
        return process_target.started(
            spawn, options.model, work=options.work, max_context=options.longest, watch_memory=watch
        )
    return spawned(
        spawn,
        options.model,
        timeout_s=options.timeout_s,
        watch_memory=watch,
        forget_kernels=options.forget_kernels,
    )


def _take_turn(turn: Turn, wanted: Left, options: Options, results: ResultsFile, progress: Progress) -> None:
    with _running(turn, options, results, progress) as (targets, started):
        try:
            uvloop.run(_measure_all(wanted, targets, started, options, results, progress))
        except TargetGone as error:
            said = started[error.name].last_words() if error.name in started else ""
            raise TargetGone(error.name, f"{error}{said}") from None


async def _measure_all(
    wanted: Left,
    targets: Mapping[str, Target],
    started: Mapping[str, Spawned],
    options: Options,
    results: ResultsFile,
    progress: Progress,
) -> None:
    streaming = await _first_requests(targets, results)
    words = await vocabularies(targets)
    session = Session(targets, words, results, progress, options.seed)
    await warm_up(session, sorted({step.cell for step in wanted.steps}))
    await one_by_one(session, wanted.steps, streaming)
    await throughput(session, wanted.bursts, streaming)
    for name in wanted.memory:
        await _memory(session, name, started[name], options)
    for target in targets.values():
        await target.close()


async def _first_requests(targets: Mapping[str, Target], results: ResultsFile) -> list[str]:
    """Measure the very first request to each target; returns the names of those that stream."""
    streaming = []
    for name, target in targets.items():
        number = sum(run.is_first and run.target == name for run in results.runs)
        run, can_stream = await first_request(target, number)
        results.add([run])
        results.head["targets"][name]["streams"] = can_stream
        streaming += [name] if can_stream else []
    return streaming


async def _memory(session: Session, name: str, server: Spawned, options: Options) -> None:
    """Measure the most memory under the longest request alone and under several requests."""
    cells = (*options.cells, options.throughput_cell)
    longest = max(cells, key=lambda cell: cell.input_tokens + cell.output_tokens)
    bursts = [
        Burst(name, longest, Level(concurrency=1), 1),
        Burst(name, options.throughput_cell, Level(concurrency=MEMORY_CONCURRENCY), MEMORY_CONCURRENCY),
    ]
    with MemoryWatch(server.pid, server.start_peaks.get("gpu_before_bytes")) as watch:
        runs = [run for burst in bursts for run in await run_burst(session, burst, stream=False)]
    if problems := [run.problem for run in runs if run.problem]:
        session.progress.say(f"memory of {name} under load was not measured: {problems[0]}")
        return
    session.results.memory.append(
        {
            "target": name,
            "start": server.start_peaks,
            "load": watch.peaks,
            "cells": [f"{burst.level} {burst.cell}" for burst in bursts],
        }
    )
    session.results.save()


def _starts(options: Options, results: ResultsFile, progress: Progress) -> None:
    """Start the servers in turn until each has been started as often as wanted."""
    for number in range(options.starts):
        for spawn in options.spawns:
            if sum(start["target"] == spawn.name for start in results.starts) > number:
                continue
            progress.say(f"start {number + 1} of {options.starts}: {spawn.name}")
            with _start(spawn, options) as one:
                _add_facts(results, spawn.name, one.facts)
                results.starts.append({"target": spawn.name, **one.start})
            results.save()


def _counted(runs: Sequence[Run]) -> str:
    return "1 run" if len(runs) == 1 else f"{len(runs)} runs"


def _sum_up(options: Options, results: ResultsFile) -> int:
    """Say what has been measured and what went wrong; returns the exit code."""
    failed = [run for run in results.runs if run.has_failed]
    for run in failed[:MAX_NAMED]:
        print(f"{run.load} {run.cell} {run.target}, run {run.number}: {run.problem}", file=sys.stderr)
    if failed:
        cure = "their cells measure nothing; --retry-failed makes them again"
        print(f"{len(failed)} of {_counted(results.runs)} failed; {cure}", file=sys.stderr)
    print(f"{options.out}: {_counted(results.runs)}; scripts/benchmark report {options.out}")
    has_memory = {one["target"] for one in results.memory}
    lacks_memory = "memory" in options.loads and any(one.name not in has_memory for one in options.spawns)
    return EXIT_FAILED if failed or lacks_memory else 0
