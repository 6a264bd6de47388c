"""Measures the fused engine without serving: scheduler and step loop, on random weights of GPT-J-6B's shape.

Usage: scripts/benchmark offline --out F [--together 4,16,64] [--runs 5]

Other engines call this offline: all requests are there at once, in one process, and the time is taken until
the last token is known on the host. Then one sequence is decoded while long prompts come in, and the time
between its tokens is taken; it also depends on how fast the host launches a prompt's kernels. Both are
repeated, and the first run of each does not count.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from gptj_serve.benchmark.engine.decode import MAX_BATCH, MAX_CONTEXT, Bench, numbers
from gptj_serve.benchmark.facts.surroundings import surroundings
from gptj_serve.engine.fused.kernels.protocol import BLOCK_SIZE
from gptj_serve.engine.fused.memory_needs import MAX_PREFILL, PREFILL_CHUNK
from gptj_serve.engine.fused.runner import FusedRunner
from gptj_serve.engine.fused.schedule.plan import ContinuousStep, RunnerLimits
from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler
from gptj_serve.engine.fused.warm_up import warm_up
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.request import Event, GenerationRequest, SamplingParams, TokenEvent

PROMPT_TOKENS, NEW_TOKENS = 200, 100
DISTURBING_PROMPT, NUM_DISTURBING, DISTURBED_TOKENS = 1000, 8, 400
DISTURBANCE = f"{NUM_DISTURBING} prompts of {DISTURBING_PROMPT} tokens while {DISTURBED_TOKENS} are decoded"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark offline", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--together", type=numbers, default=[4, 16, 64], help="sequences (default 4,16,64)")
    parser.add_argument("--runs", type=int, default=5, help="of each, after one that does not count")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    bench = Bench(torch.device("cuda", 0))
    limits = RunnerLimits(
        max_batch_size=MAX_BATCH,
        max_context=MAX_CONTEXT,
        vocab_size=bench.state.architecture.vocab_size,
        block_size=BLOCK_SIZE,
        num_blocks=bench.state.cache.keys_LNHSE.shape[1],
        prefill_chunk=PREFILL_CHUNK,
        max_prefill=MAX_PREFILL,
    )
    runner = FusedRunner(bench.state, bench.kernels, limits)
    warm_up(runner)
    throughput = {number: _throughput(runner, number, args.runs) for number in args.together}
    disturbed = [_disturbed(runner) for _ in range(args.runs + 1)][1:]
    report = {
        **surroundings(),
        "together": throughput,
        "under_prefill": DISTURBANCE,
        "under_prefill_ms": disturbed,
    }
    args.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def _throughput(runner: FusedRunner, number: int, num_runs: int) -> dict[str, Any]:
    """Measure tokens per second when ``number`` sequences come at the same moment."""
    seconds = []
    for _ in range(num_runs + 1):
        loop, add = _engine(runner)
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for _ in range(number):
            add(PROMPT_TOKENS, NEW_TOKENS)
        num_tokens = sum(isinstance(event, TokenEvent) for event in _until_idle(loop))
        seconds.append(time.perf_counter() - started_s)
        assert num_tokens == number * NEW_TOKENS, num_tokens
    rate = number * NEW_TOKENS / statistics.median(seconds[1:])
    return {"tokens_per_s": round(rate, 1), "runs_s": [round(one, 4) for one in seconds[1:]]}


def _disturbed(runner: FusedRunner) -> dict[str, Any]:
    """Measure the milliseconds between a sequence's tokens while long prompts come in one by one."""
    loop, add = _engine(runner)
    add(PROMPT_TOKENS, DISTURBED_TOKENS)
    times_s: list[float] = []
    while True:
        events, wait = loop.step()
        if wait is not None:
            break
        if any(isinstance(event, TokenEvent) and event.request_id == "0" for event in events):
            times_s.append(time.perf_counter())
            if len(times_s) % (DISTURBED_TOKENS // NUM_DISTURBING) == 1:
                add(DISTURBING_PROMPT, 1)
    gaps_ms = sorted((later - sooner) * 1e3 for sooner, later in itertools.pairwise(times_s))
    median, p99 = statistics.median(gaps_ms), gaps_ms[int(0.99 * len(gaps_ms))]
    return {
        "median": round(median, 2),
        "p99": round(p99, 2),
        "p99_over_median": round(p99 / median, 2),
        "max": round(gaps_ms[-1], 2),
    }


def _engine(runner: FusedRunner) -> tuple[StepLoop[ContinuousStep], Callable[[int, int], None]]:
    """A step loop with a fresh scheduler, and a function that adds a request of given lengths."""
    scheduler = ContinuousScheduler(runner.limits, max_queue=1000)
    names = iter(range(1000))

    def add(prompt_tokens: int, new_tokens: int) -> None:
        name = str(next(names))
        request = GenerationRequest(name, (5,) * prompt_tokens, SamplingParams(new_tokens))
        scheduler.add([((0, name), request)], time.monotonic())

    return StepLoop(scheduler, runner, steps_ahead=1), add


def _until_idle(loop: StepLoop[ContinuousStep]) -> list[Event]:
    found: list[Event] = []
    while True:
        events, wait = loop.step()
        found += events
        if wait is not None:
            return found
