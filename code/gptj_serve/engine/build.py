"""Puts an engine together: chooses the backend, loads it, joins it to a scheduler and a socket."""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from gptj_serve.engine.choose import Machine, choose_engine
from gptj_serve.engine.engine import Engine
from gptj_serve.engine.fused.kernels.library import find_library
from gptj_serve.engine.fused.obstacle import obstacle
from gptj_serve.engine.fused.schedule.plan import ContinuousRunner
from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler
from gptj_serve.engine.machine import describe, limit_threads, look_at_machine
from gptj_serve.engine.sampling import sampler
from gptj_serve.engine.scheduler import Limits, Scheduler
from gptj_serve.engine.server import EngineServer
from gptj_serve.engine.start_log import logged_import
from gptj_serve.engine.static.backend import Backend
from gptj_serve.engine.static.runner import StaticRunner
from gptj_serve.engine.static.scheduler import StaticScheduler, StaticStep
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.errors import StartupError
from gptj_serve.logs import log_event
from gptj_serve.models.model_dir import Checkpoint
from gptj_serve.models.model_name import find_model_name
from gptj_serve.request import ModelInfo
from gptj_serve.settings import Settings

logger = logging.getLogger(__name__)


def build_engine(settings: Settings, checkpoint: Checkpoint, socket_path: Path) -> tuple[Engine, ModelInfo]:
    """Load the model and open the socket.

    Args:
        settings: The service's settings.
        checkpoint: The model.
        socket_path: Where fronts connect.

    Returns:
        The engine, which does not run yet, and what fronts are told about it.

    Raises:
        StartupError: The engine asked for cannot run here, or the model does not load.
    """
    limit_threads(os.environ)
    machine = look_at_machine(os.environ)
    name, reason, library = _choose(settings, machine, checkpoint)
    fields: dict[str, Any] = {"engine": name, "reason": reason, **describe(machine)}
    log_event(logger, "engine_chosen", f"engine {name} ({reason})", **fields)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if name == "fused":
        from gptj_serve.engine.fused.build import load_fused

        runner = load_fused(
            checkpoint,
            device,
            max_batch_size=settings.max_batch_size,
            max_context=settings.max_context,
            library=library,
        )
        return join_continuous(runner, settings, checkpoint, socket_path)
    backend = _load_static(name, settings, checkpoint, device)
    # all of these backends make their logits float32
    sampler.warm_up(device, torch.float32, backend.limits.max_batch_size, backend.limits.vocab_size)
    return join_static(backend, device, settings, checkpoint, socket_path)


def _choose(settings: Settings, machine: Machine, checkpoint: Checkpoint) -> tuple[str, str, Path | None]:
    """The engine, the reason, and its kernels if they were looked for; `auto` skips what does not compile."""
    name, reason = choose_engine(settings.engine, machine, obstacle(checkpoint))
    if (settings.engine, name) != ("auto", "fused"):
        return name, reason, None
    major, minor = machine.capability
    try:
        return name, reason, find_library(os.environ, [f"{major}.{minor}"])
    except StartupError as error:
        return *choose_engine(settings.engine, machine, str(error)), None


def join_static(
    backend: Backend, device: torch.device, settings: Settings, checkpoint: Checkpoint, socket_path: Path
) -> tuple[Engine, ModelInfo]:
    """Join a backend to static batching and open the socket; see `build_engine`."""
    limits = backend.limits
    scheduler = StaticScheduler(
        max_batch_size=limits.max_batch_size,
        max_context=limits.max_context,
        vocab_size=limits.vocab_size,
        max_queue=settings.max_queue,
        batch_wait_s=settings.batch_wait_ms / 1000,
    )
    info = _model_info(backend.name, "static", limits, settings, checkpoint)
    step_loop = StepLoop[StaticStep](scheduler, StaticRunner(backend, device), steps_ahead=0)
    return _open(scheduler, step_loop, info, settings, socket_path), info


def join_continuous(
    runner: ContinuousRunner, settings: Settings, checkpoint: Checkpoint, socket_path: Path
) -> tuple[Engine, ModelInfo]:
    """Join a runner to continuous batching and open the socket; see `build_engine`."""
    scheduler = ContinuousScheduler(runner.limits, max_queue=settings.max_queue)
    info = _model_info(runner.name, "continuous", runner.limits, settings, checkpoint)
    step_loop = StepLoop(scheduler, runner, steps_ahead=1)
    return _open(scheduler, step_loop, info, settings, socket_path), info


def _model_info(
    name: str,
    batching: str,
    limits: Limits,
    settings: Settings,
    checkpoint: Checkpoint,
) -> ModelInfo:
    return ModelInfo(
        engine=name,
        model_dir=str(checkpoint.directory),
        max_context=limits.max_context,
        max_batch_size=limits.max_batch_size,
        vocab_size=limits.vocab_size,
        eos_token_ids=checkpoint.generation.eos_token_ids,
        batching=batching,
        defaults=checkpoint.generation.scores,
        model_name=find_model_name(settings, checkpoint.directory),
    )


def _open(
    scheduler: Scheduler[Any],
    step_loop: StepLoop[Any],
    info: ModelInfo,
    settings: Settings,
    socket_path: Path,
) -> Engine:
    server = EngineServer(socket_path, info)
    joined = Engine(server, scheduler, step_loop, settings.drain_timeout_s)
    server.stats = joined.stats
    server.start()
    return joined


def _load_static(name: str, settings: Settings, checkpoint: Checkpoint, device: torch.device) -> Backend:
    # each only imports what it needs, as Transformers alone takes longer than PyTorch
    if name == "hf":
        with logged_import("Transformers"):
            from gptj_serve.engine.static.hf import load_hf
        return load_hf(
            checkpoint, device, max_batch_size=settings.max_batch_size, max_context=settings.max_context
        )
    with logged_import("Transformers and DeepSpeed"):
        from gptj_serve.engine.static.deepspeed.backend import load_deepspeed
        from gptj_serve.engine.static.deepspeed.rules import check_config
        from gptj_serve.engine.static.transformers_loader import load_config, load_model
    # what the engine cannot run is known before minutes of loading
    check_config(load_config(checkpoint))
    model = load_model(checkpoint, device, torch.float16)
    return load_deepspeed(model, settings.max_batch_size, settings.max_context)
