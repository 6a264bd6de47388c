"""Runs what the static scheduler decides: schedule → prefill or decode → sample → commit."""

import time
from collections.abc import Callable, Sequence

import torch

from gptj_serve.engine.failures import BackendDead, FailedSteps
from gptj_serve.engine.sampling.sampler import SamplerRow, sample
from gptj_serve.engine.scheduler import Event, Running, Sampled, Wait
from gptj_serve.engine.static.backend import Backend
from gptj_serve.engine.static.scheduler import Prefill, StaticScheduler, Step


class StepLoop:
    """One backend, one scheduler, one thread.

    Args:
        scheduler: Decides what runs.
        backend: Runs it.
        now_s: The clock, in seconds.

    Attributes:
        num_steps: Steps that were run, those that failed included.
    """

    def __init__(
        self, scheduler: StaticScheduler, backend: Backend, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._now_s = now_s
        self._failed_steps = FailedSteps(scheduler.counters)
        self.num_steps = 0

    def step(self) -> tuple[list[Event], Wait | None]:
        """Run one step.

        Returns:
            What happened, and how long there is nothing to run (None if there may be more at once).

        Raises:
            BackendDead: The process has to end; the batch's sequences have had no terminal event.
        """
        self._failed_steps.check()
        events = self._scheduler.expire(self._now_s())
        step = self._scheduler.schedule(self._now_s())
        if isinstance(step, Wait):
            return events, step
        try:
            sampled = self._run(step)
        except BackendDead:
            raise
        except Exception as error:
            # whatever failed must not reach the next batch
            failure = self._failed_steps.add(error, {row.call for row in step.rows if row})
            events += self._scheduler.fail(step, failure, self._now_s())
        else:
            events += self._scheduler.commit(step, sampled, self._now_s())
        self.num_steps += 1
        if not self._scheduler.num_running:
            self._backend.reset()
        return events, None

    @torch.inference_mode()
    def _run(self, step: Step) -> Sequence[Sampled | None]:
        if isinstance(step, Prefill):
            self._backend.reset()  # a batch whose rows were all aborted was never ended by a step
            logits_BV = self._backend.prefill([row.request.prompt_ids for row in step.rows])
        else:
            logits_BV = self._backend.decode([row.generated_ids[-1] if row else 0 for row in step.rows])
        return sample(logits_BV, [_sampler_row(row) for row in step.rows])


def _sampler_row(running: Running | None) -> SamplerRow | None:
    if running is None:
        return None
    return SamplerRow(
        sampling=running.request.sampling,
        prompt_ids=running.request.prompt_ids,
        generated_ids=running.generated_ids,
        eos_token_ids=running.request.eos_token_ids,
        logprobs=running.request.logprobs,
        num_top_logprobs=running.request.num_top_logprobs,
    )
