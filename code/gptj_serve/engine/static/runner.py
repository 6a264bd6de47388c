"""Runs the static scheduler's steps on one backend: prefill or decode, then sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.sampling.results import Choice
from gptj_serve.engine.sampling.sampler import Sampler, SamplerRow
from gptj_serve.engine.scheduler import HeldSequence, Sampled
from gptj_serve.engine.static.backend import Backend
from gptj_serve.engine.static.scheduler import Prefill, StaticStep
from gptj_serve.request import GenerationRequest, SamplingParams

_ENDED = GenerationRequest("", (0,), SamplingParams(max_new_tokens=1))
"""Stands for the request of a row whose sequence has ended: the argmax of its logits, which nobody reads."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """Meets `gptj_serve.engine.step_loop.PendingStep`."""

    rows: Sequence[HeldSequence | None]
    choice: Choice

    def results(self) -> list[list[Sampled]]:
        """Wait for the step; returns a token for each row, or none if the row's sequence had ended."""
        chosen = zip(self.rows, self.choice.results(), strict=True)
        return [[] if sequence is None else [token] for sequence, token in chosen]


class StaticRunner:
    """Meets `gptj_serve.engine.step_loop.StepRunner`. Each row of a batch has a slot of the history.

    Args:
        backend: Computes the logits.
        device: The device of the logits.
    """

    def __init__(self, backend: Backend, device: torch.device) -> None:
        limits = backend.limits
        self._backend = backend
        self._history_SC = torch.zeros(
            limits.max_batch_size, limits.max_context + 1, dtype=torch.int64, device=device
        )
        self._sampler = Sampler(self._history_SC, limits.vocab_size)

    @torch.inference_mode()
    def launch(self, step: StaticStep) -> LaunchedStep:
        """Start a step; see `gptj_serve.engine.step_loop.StepRunner.launch`."""
        if isinstance(step, Prefill):
            self._backend.reset()  # no step has ended a batch whose rows were all aborted
            prompts = [row.request.prompt_ids for row in step.rows]
            self._begin(prompts)
            logits_BV = self._backend.prefill(prompts)
        else:
            logits_BV = self._backend.decode([row.generated_ids[-1] if row else 0 for row in step.rows])
        rows = [_sampler_row(slot, sequence) for slot, sequence in enumerate(step.rows)]
        return LaunchedStep(step.rows, self._sampler.choose(logits_BV, rows))

    def release(self) -> None:
        """Forget the batch that has ended."""
        self._backend.reset()

    def _begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Begin the rows' histories, which the sampler continues.

        This happens before the prompts are computed, while the device is idle, because the copy waits for it.
        """
        with batch_errors("reading the prompts"):
            ids_BT = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True)
            self._history_SC[: ids_BT.shape[0], : ids_BT.shape[1]] = ids_BT


def _sampler_row(slot: int, sequence: HeldSequence | None) -> SamplerRow:
    if sequence is None:
        return SamplerRow(_ENDED, slot, end=1)
    return SamplerRow(sequence.request, slot, len(sequence.request.prompt_ids) + len(sequence.generated_ids))
