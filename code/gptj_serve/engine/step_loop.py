"""Runs what a scheduler decides: schedule → launch → results → commit, at once or one step ahead.

One step ahead, the loop waits for the results of the previous step: while the host books and reports the
tokens of one step, the device computes the next.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from gptj_serve.engine.failures import BackendDead, FailedSteps
from gptj_serve.engine.scheduler import Sampled, Scheduler, Step, StepT, Wait
from gptj_serve.request import Event

ComputedStep = TypeVar("ComputedStep", bound=Step, contravariant=True)


class PendingStep(Protocol):
    """A step that was launched."""

    def results(self) -> Sequence[Sequence[Sampled]]:
        """Wait for the step; returns the tokens of each row that chooses some, in the rows' order.

        Raises:
            BatchLost, BackendDead: As `gptj_serve.engine.failures` has them.
        """
        ...


class StepRunner(Protocol[ComputedStep]):
    """Runs steps in the order in which they are launched."""

    def launch(self, step: ComputedStep) -> PendingStep:
        """Start a step. A runner that can be one step ahead waits neither for it nor for any previous step.

        Raises:
            ValueError: The step passes a limit; nothing has run.
            BatchLost, BackendDead: As `gptj_serve.engine.failures` has them.
        """
        ...

    def release(self) -> None:
        """Release what the last steps held, as no sequence runs any more."""
        ...


@dataclass(frozen=True, slots=True)
class _Launched(Generic[StepT]):
    """A step in flight, or the reason why it could not be launched."""

    step: StepT
    pending: PendingStep | Exception


class StepLoop(Generic[StepT]):
    """One runner, one scheduler, one thread.

    Args:
        scheduler: Decides what runs.
        runner: Runs the steps.
        now_s: The clock, in seconds.
        steps_ahead: Steps in flight while the next one is scheduled: 0, or 1 for a scheduler that plans
            without knowing the tokens of the step before.
        checks: Check the scheduler's books after every step; an error in them ends the loop.

    Attributes:
        num_steps: How many steps were run, failed ones included.
    """

    def __init__(
        self,
        scheduler: Scheduler[StepT],
        runner: StepRunner[StepT],
        now_s: Callable[[], float] = time.monotonic,
        *,
        steps_ahead: int,
        checks: bool = False,
    ) -> None:
        if steps_ahead not in (0, 1):
            raise ValueError(f"steps_ahead is {steps_ahead}; must be 0 or 1")
        self._scheduler = scheduler
        self._runner = runner
        self._now_s = now_s
        self._is_ahead = steps_ahead == 1
        self._checks = checks
        self._in_flight: _Launched[StepT] | None = None
        self._failed_steps = FailedSteps(scheduler.counters)
        self.num_steps = 0

    def step(self) -> tuple[list[Event], Wait | None]:
        """Launch the next step, if there is one, and finish the previous step, or this one.

        Returns:
            What happened, and how long there is nothing to run; None if there may be more at once.

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
        # sequences of a step that failed must not be scheduled again before they have failed
        last = self._in_flight
        if last and (not self._is_ahead or isinstance(last.pending, Exception)):
            events += self._finish(last)
            self._in_flight = None
        if self._checks:
            self._scheduler.check()
        if not self._in_flight and not self._scheduler.num_running:
            self._runner.release()
        return events, None

    def _launch(self, step: StepT) -> _Launched[StepT]:
        try:
            return _Launched(step, self._runner.launch(step))
        except BackendDead:
            raise
        except Exception as error:
            return _Launched(step, error)

    def _finish(self, launched: _Launched[StepT]) -> list[Event]:
        try:
            if isinstance(launched.pending, Exception):
                raise launched.pending
            sampled = launched.pending.results()
        except BackendDead:
            raise
        except Exception as error:
            # whatever failed must not reach the next batch
            failure = self._failed_steps.add(error, launched.step.calls)
            events = self._scheduler.fail(launched.step, failure, self._now_s())
        else:
            events = self._scheduler.commit(launched.step, sampled, self._now_s())
        self.num_steps += 1
        return events
