"""Logs how long each part of a start took."""

import contextlib
import gc
import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def logged_import(what: str) -> Iterator[None]:
    """Log the time of the imports inside, which are most of a start on a warm machine.

    The garbage collector rests meanwhile: it would look again and again at what is there to stay.

    Args:
        what: The slow packages among them.
    """
    started_s = time.monotonic()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    log_event(logger, "imported", f"imported {what}", what=what, seconds=_since_s(started_s))


@contextlib.contextmanager
def logged_warm_up() -> Iterator[None]:
    """Log the time of a model's warm-up."""
    started_s = time.monotonic()
    yield
    log_event(logger, "warmed_up", "the model is warmed up", seconds=_since_s(started_s))


def log_loaded(
    logger: logging.Logger, seconds: Mapping[str, float], device: str, device_bytes: int, **more: Any
) -> None:
    """Log that a model's weights are in place.

    Args:
        logger: The logger of the module that loaded them.
        seconds: How long each phase took.
        device: The device that they are on.
        device_bytes: How many bytes they take there.
        more: Other fields.
    """
    fields: dict[str, Any] = {
        "seconds": round(sum(seconds.values()), 3),
        **{f"{phase}_seconds": round(one, 3) for phase, one in seconds.items()},
        **more,
        "device": device,
        "device_bytes": device_bytes,
        "host_peak_bytes": _host_peak_bytes(),
    }
    log_event(logger, "model_loaded", "the model is loaded", **fields)


def _host_peak_bytes() -> int:
    """The process's largest resident size so far, mapped files included."""
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit_bytes


def _since_s(started_s: float) -> float:
    return round(time.monotonic() - started_s, 3)
