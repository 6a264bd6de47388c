"""Decides what a failed step costs: its batch, or the process. No torch is imported here."""

import logging

from gptj_serve.engine.scheduler import Counters
from gptj_serve.errors import InternalError
from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)

MAX_FAILED_STEPS = 10
"""The process ends after so many failed steps, each of another call, if none was served in between."""


class BatchLost(Exception):
    """The batch that was running cannot go on; the backend itself can, after `reset`."""


class BackendDead(Exception):
    """The backend cannot go on (a CUDA error, say): the process has to end."""


class FailedSteps:
    """Counts steps that were given up: each costs its sequences, but an engine that only fails has to end.

    Args:
        counters: The scheduler's counters.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._num_served = 0
        self._in_a_row = 0
        self._calls: set[int] = set()

    def check(self) -> None:
        """Check before a step that the process may go on.

        Raises:
            BackendDead: `MAX_FAILED_STEPS` have failed since a sequence was served.
        """
        if self._in_a_row >= MAX_FAILED_STEPS:
            raise BackendDead(f"{MAX_FAILED_STEPS} steps have failed and no sequence was served in between")

    def add(self, error: Exception, calls: set[int]) -> InternalError:
        """Log why a step was given up.

        Args:
            error: What the step raised. A `BatchLost` says that the batch was the reason, and is not counted.
            calls: The calls that had a part in the step. A call counts once, however many steps it needs.

        Returns:
            The error for the step's clients.
        """
        log_event(logger, "batch_failed", "a batch was given up", level=logging.ERROR, error=error)
        if isinstance(error, BatchLost):
            return InternalError(str(error))
        if self._counters.served != self._num_served:
            self._num_served, self._in_a_row = self._counters.served, 0
            self._calls.clear()
        self._in_a_row += bool(calls - self._calls)
        self._calls |= calls
        return InternalError("the engine failed on this batch")
