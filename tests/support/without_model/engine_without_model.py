"""Whoever imports this as a process starts gets an engine without a model, and so without PyTorch.

All else of the engine process is its own: how it starts and ends, its socket, scheduler and step loop. It is
for tests of what is around the engine: a service with it takes a third of the processor time.
"""

import logging
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STEP_S = 0.004
"""What a step takes, whatever is in it."""
TOKEN_IDS = range(300, 400)
"""What sequences say, over and over. The prompt decides the first: equal texts are of equal prompts."""


class Pending:
    """A step's tokens, which are there when its time is over."""

    def __init__(self, sampled: Sequence[Any]) -> None:
        self._sampled = sampled

    def results(self) -> Sequence[Any]:
        time.sleep(STEP_S)
        return self._sampled


class Runner:
    """Meets `gptj_serve.engine.step_loop.StepRunner`, for the steps of both kinds of batching."""

    def launch(self, step: Any) -> Pending:
        if hasattr(step, "sampled_rows"):
            return Pending(
                [[choose(row.request, row.end - len(row.request.prompt_ids))] for row in step.sampled_rows]
            )
        return Pending([[choose(row.request, len(row.generated_ids))] if row else [] for row in step.rows])

    def release(self) -> None:
        """Nothing to give up."""


def choose(request: Any, number: int) -> Any:
    """A token of a sequence, with what was asked for beside it."""
    from gptj_serve.engine.scheduler import Sampled

    first = zlib.crc32(str(request.prompt_ids).encode()) + number
    token_id = TOKEN_IDS[first % len(TOKEN_IDS)]
    if not request.logprobs:
        return Sampled(token_id)
    likeliest = [(TOKEN_IDS[(first + k) % len(TOKEN_IDS)], -1.0 - k) for k in range(request.num_top_logprobs)]
    return Sampled(token_id, -1.0, top_logprobs=tuple(likeliest))


def continuous(settings: Any, limits: dict[str, int]) -> tuple[Any, int]:
    """The scheduler of continuous batching, and how many steps ahead it plans."""
    from gptj_serve.engine.fused.schedule.plan import RunnerLimits
    from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler

    cache = {"block_size": 16, "num_blocks": 1024, "prefill_chunk": 512, "max_prefill": 2048}
    return ContinuousScheduler(RunnerLimits(**limits, **cache), max_queue=settings.max_queue), 1


def static(settings: Any, limits: dict[str, int]) -> tuple[Any, int]:
    """The same of static batching."""
    from gptj_serve.engine.static.scheduler import StaticScheduler

    wait_s = settings.batch_wait_ms / 1000
    return StaticScheduler(**limits, max_queue=settings.max_queue, batch_wait_s=wait_s), 0


def build_engine(settings: Any, checkpoint: Any, socket_path: Path) -> tuple[Any, Any]:
    """What `gptj_serve.engine.build.build_engine` does, of an engine that stands in for the one asked for."""
    from gptj_serve.engine.engine import Engine
    from gptj_serve.engine.server import EngineServer
    from gptj_serve.engine.step_loop import StepLoop
    from gptj_serve.logs import log_event
    from gptj_serve.request import ModelInfo

    log_event(logging.getLogger(__name__), "model_loaded", "there is no model", device_bytes=0, seconds=0.0)
    limits = {
        "max_batch_size": settings.max_batch_size or 8,
        "max_context": settings.max_context or checkpoint.architecture.max_positions,
        "vocab_size": checkpoint.architecture.vocab_size,
    }
    batching = {"fused": continuous, "hf": static}[settings.engine]
    scheduler, steps_ahead = batching(settings, limits)
    info = ModelInfo(
        engine=settings.engine,
        model_dir=str(checkpoint.directory),
        **limits,
        eos_token_ids=checkpoint.generation.eos_token_ids,
        batching=batching.__name__,
    )
    server = EngineServer(socket_path, info)
    step_loop = StepLoop(scheduler, Runner(), steps_ahead=steps_ahead)
    engine = Engine(server, scheduler, step_loop, settings.drain_timeout_s)
    server.stats = engine.stats
    server.start()
    return engine, info


if "gptj_serve.engine" in sys.orig_argv:
    sys.modules["gptj_serve.engine.build"] = sys.modules[__name__]
