"""Runs what the continuous scheduler decides, one step ahead of the tokens.

Schedule → launch → results of the step before → commit: while the host books and reports one step's tokens,
the device computes the next step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from gptj_serve.engine.failures import BackendDead, FailedSteps
from gptj_serve.engine.fused.schedule.plan import ContinuousStep, PendingStep, StepRunner
from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler
from gptj_serve.engine.scheduler import Event, Wait


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step in flight, or why it could not be launched."""

    step: ContinuousStep
    pending: PendingStep | Exception


class ContinuousStepLoop:
    """One runner, one scheduler, one thread; one step in flight.

    Args:
        scheduler: Decides what runs.
        runner: Runs it.
        now_s: The clock, in seconds.
        checks: Check the scheduler's books after every step; `IntegrityError` then ends the loop.

    Attributes:
        num_steps: Steps that were run, those that failed included.
    """

    def __init__(
        self,
        scheduler: ContinuousScheduler,
        runner: StepRunner,
        now_s: Callable[[], float] = time.monotonic,
        *,
        checks: bool = False,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._now_s = now_s
        self._checks = checks
        self._in_flight: _Launched | None = None
        self._failed_steps = FailedSteps(scheduler.counters)
        self.num_steps = 0

    def step(self) -> tuple[list[Event], Wait | None]:
        """Launch the next step, if there is one, and finish the one before.

        Returns:
            What happened, and how long there is nothing to run (None if there may be more at once).

        Raises:
            BackendDead: The process has to end; sequences of steps in flight have had no terminal event.
        """
        self._failed_steps.check()
        events = self._scheduler.expire(self._now_s())
        step = self._scheduler.schedule(self._now_s())
        before = self._in_flight
        if isinstance(step, Wait):
            if before is None:
                return events, step
            self._in_flight = None
        else:
            self._in_flight = self._launch(step)
        if before:
            events += self._finish(before)
        # its sequences must not be scheduled again before they have failed
        if self._in_flight and isinstance(self._in_flight.pending, Exception):
            events += self._finish(self._in_flight)
            self._in_flight = None
        if self._checks:
            self._scheduler.check()
        return events, None

    def _launch(self, step: ContinuousStep) -> _Launched:
        try:
            return _Launched(step, self._runner.launch(step))
        except BackendDead:
            raise
        except Exception as error:
            return _Launched(step, error)

    def _finish(self, launched: _Launched) -> list[Event]:
        try:
            if isinstance(launched.pending, Exception):
                raise launched.pending
            sampled = launched.pending.results()
        except BackendDead:
            raise
        except Exception as error:
            failure = self._failed_steps.add(error, _calls(launched.step))
            events = self._scheduler.fail(launched.step, failure, self._now_s())
        else:
            events = self._scheduler.commit(launched.step, sampled, self._now_s())
        self.num_steps += 1
        return events


def _calls(step: ContinuousStep) -> set[int]:
    return {row.call for row in (*step.prefills, *step.decodes)}
