"""Sequences for the sampler, and ways to drive it: over a history, or over no more than their own ids."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from gptj_serve.engine.sampling.packing import Upload
from gptj_serve.engine.sampling.profile import profile
from gptj_serve.engine.sampling.sampler import Sampler, SamplerRow
from gptj_serve.engine.sampling.score_plan import EVERY_FILTER, PlannedRow, plan_scores
from gptj_serve.engine.scheduler import Sampled
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
    def sampling(self) -> SamplingParams:
        return self.request.sampling

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        return self.request.prompt_ids

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self.request.eos_token_ids

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.request.prompt_ids, *self.generated_ids)

    def row(self, slot: int) -> SamplerRow:
        return SamplerRow(self.request, slot, len(self.ids))


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
    history_SC = torch.full((num_slots, max_context + 1), STALE_ID, dtype=dtype)
    for one, slot in zip(sequences, slots, strict=True):
        history_SC[slot, : len(one.ids)] = torch.tensor(one.ids)
    return history_SC


def choose(
    logits_BV: torch.Tensor, sequences: Sequence[Sampling], history_SC: torch.Tensor, slots: Sequence[int]
) -> list[Sampled]:
    """The next token of each sequence, whose ids are in its slot of the history."""
    rows = [one.row(slot) for one, slot in zip(sequences, slots, strict=True)]
    return Sampler(history_SC, logits_BV.shape[1]).choose(logits_BV, rows).results()


def sample(logits_BV: torch.Tensor, sequences: Sequence[Sampling]) -> list[Sampled]:
    """The same with a history of these sequences alone."""
    return choose(logits_BV, sequences, _own_history(sequences).to(logits_BV.device), range(len(sequences)))


def process_scores(scores_BV: torch.Tensor, sequences: Sequence[Sampling]) -> torch.Tensor:
    """The scores as the choice sees them: float32, -inf where a token cannot be chosen."""
    vocab_size, upload = scores_BV.shape[1], Upload()
    planned = [
        PlannedRow(profile(one.request, vocab_size), slot, len(one.ids)) for slot, one in enumerate(sequences)
    ]
    plan = plan_scores(planned, vocab_size, upload)
    return plan.process(scores_BV, upload.to(scores_BV.device), _own_history(sequences))


def _own_history(sequences: Sequence[Sampling]) -> torch.Tensor:
    longest = max((len(one.ids) for one in sequences), default=0)
    return history_of(sequences, range(len(sequences)), len(sequences), longest)


def comparable(results: Sequence[Sampled]) -> list[tuple[Any, ...]]:
    """Errors are not equal to each other, their messages are."""
    return [
        (one.token_id, one.logprob, one.error and (type(one.error), one.error.message), one.top_logprobs)
        for one in results
    ]
