"""Runs the static scheduler's steps on one backend: prefill or decode, then sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptj_serve.engine.scheduler import HeldSequence, Sampled
from gptj_serve.engine.static.backend import Backend
from gptj_serve.engine.static.sampler import SamplerRow, sample
from gptj_serve.engine.static.scheduler import Prefill, Step


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """Meets `gptj_serve.engine.step_loop.PendingStep`: the step was run when it was launched."""

    sampled: Sequence[Sequence[Sampled]]

    def results(self) -> Sequence[Sequence[Sampled]]:
        """One token a row, none where the row's sequence had ended."""
        return self.sampled


class StaticRunner:
    """Meets `gptj_serve.engine.step_loop.StepRunner`.

    Args:
        backend: Computes the logits.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @torch.inference_mode()
    def launch(self, step: Step) -> FinishedStep:
        """Run a step to its end."""
        if isinstance(step, Prefill):
            self._backend.reset()  # a batch whose rows were all aborted was never ended by a step
            logits_BV = self._backend.prefill([row.request.prompt_ids for row in step.rows])
        else:
            logits_BV = self._backend.decode([row.generated_ids[-1] if row else 0 for row in step.rows])
        chosen = sample(logits_BV, [_sampler_row(row) for row in step.rows])
        return FinishedStep([[] if one is None else [one] for one in chosen])

    def release(self) -> None:
        """Forget the batch that has ended."""
        self._backend.reset()


def _sampler_row(sequence: HeldSequence | None) -> SamplerRow | None:
    if sequence is None:
        return None
    return SamplerRow(
        sampling=sequence.request.sampling,
        prompt_ids=sequence.request.prompt_ids,
        generated_ids=sequence.generated_ids,
        eos_token_ids=sequence.request.eos_token_ids,
        logprobs=sequence.request.logprobs,
        num_top_logprobs=sequence.request.num_top_logprobs,
    )
