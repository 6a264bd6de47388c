"""The same sequence as the device sampler and as the static sampler see it."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.sampling.sampler import DeviceSampler
from gptj_serve.engine.sampling.score_plan import EVERY_FILTER
from gptj_serve.engine.scheduler import Sampled
from gptj_serve.engine.static.sampler import SamplerRow
from gptj_serve.request import GenerationRequest, SamplingParams

EVERYTHING = {one.name: getattr(EVERY_FILTER, one.name) for one in fields(EVERY_FILTER) if one.init}
"""The parameters of a row that passes every filter."""

STALE_ID = 1
"""What lies in the history where nothing of the sequence is: it must not count."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """One sequence: its request, and what it has generated so far."""

    request: GenerationRequest
    generated_ids: tuple[int, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.request.prompt_ids, *self.generated_ids)

    def static_row(self) -> SamplerRow:
        request = self.request
        return SamplerRow(
            request.sampling,
            request.prompt_ids,
            self.generated_ids,
            request.eos_token_ids,
            request.logprobs,
            request.num_top_logprobs,
        )

    def device_row(self, slot: int) -> Row:
        """The host does not know the last tokens: its copy of what was generated is empty."""
        return Row(0, 0, self.request, slot, (), start=len(self.ids) - 1, token_ids=None, samples=True)


def sequence(
    prompt_ids: Sequence[int] = (1, 2, 3),
    generated_ids: Sequence[int] = (),
    *,
    eos_token_ids: tuple[int, ...] = (3, 7),
    logprobs: bool = False,
    num_top_logprobs: int = 0,
    **sampling: Any,
) -> Sampling:
    params = SamplingParams(**{"max_new_tokens": 100, **sampling})
    request = GenerationRequest(
        "r", tuple(prompt_ids), params, eos_token_ids, logprobs, num_top_logprobs=num_top_logprobs
    )
    return Sampling(request, tuple(generated_ids))


def history_of(
    sequences: Sequence[Sampling],
    slots: Sequence[int],
    num_slots: int,
    max_context: int,
    dtype: torch.dtype = torch.int64,
) -> torch.Tensor:
    history_SC = torch.full((num_slots + 1, max_context + 1), STALE_ID, dtype=dtype)
    for one, slot in zip(sequences, slots, strict=True):
        history_SC[slot, : len(one.ids)] = torch.tensor(one.ids)
    return history_SC


def choose_on_device(
    logits_BV: torch.Tensor, sequences: Sequence[Sampling], history_SC: torch.Tensor, slots: Sequence[int]
) -> list[Sampled]:
    sampler = DeviceSampler(history_SC, logits_BV.shape[1])
    rows = [one.device_row(slot) for one, slot in zip(sequences, slots, strict=True)]
    choice = sampler.choose(logits_BV, rows)
    choice.to_host()
    return choice.results()


def comparable(results: Sequence[Sampled | None]) -> list[object]:
    """Errors are not equal to each other, their messages are."""
    return [
        None
        if one is None
        else (one.token_id, one.logprob, one.error and (type(one.error), one.error.message), one.top_logprobs)
        for one in results
    ]
