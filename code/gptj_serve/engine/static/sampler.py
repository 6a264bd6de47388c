"""Chooses the next token of every row of a static batch, as Transformers' ``generate`` would.

What is done with the scores, and in which order, is `gptj_serve.engine.sampling.score_plan`'s. Rows are
worked on together; one transfer brings all results back (and a second one the likeliest tokens, if a row
asks for them).

A draw is the inverse of the cumulative distribution in the order of token ids, at a number that
depends on the seed, the sequence and the position alone (`gptj_serve.engine.sampling.uniform`).

Shape suffixes: B rows of the batch, R rows picked out of it, V vocabulary, C positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.sampling.packing import Upload
from gptj_serve.engine.sampling.profile import profile
from gptj_serve.engine.sampling.score_plan import EVERY_FILTER, PlannedRow, ScorePlan, plan_scores
from gptj_serve.engine.scheduler import Sampled
from gptj_serve.engine.static.backend import BackendLimits
from gptj_serve.errors import InternalError
from gptj_serve.request import SamplingParams


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """One live row.

    Attributes:
        sampling: How its tokens are chosen.
        prompt_ids: Its prompt.
        generated_ids: What it has generated so far.
        eos_token_ids: Held back until ``min_new_tokens``; ids outside the vocabulary are ignored.
        logprobs: Report the token's log-probability.
        num_top_logprobs: Report this many of the most likely tokens too; needs ``logprobs``.
    """

    sampling: SamplingParams
    prompt_ids: Sequence[int]
    generated_ids: Sequence[int]
    eos_token_ids: Sequence[int]
    logprobs: bool
    num_top_logprobs: int = 0


@torch.inference_mode()
def sample(logits_BV: torch.Tensor, rows: Sequence[SamplerRow | None]) -> list[Sampled | None]:
    """Choose one token a row.

    Args:
        logits_BV: Next-token logits of any floating type, on any device; not changed.
        rows: One entry a row; None for a row whose sequence has ended.

    Returns:
        One entry a row, None where the row was None. A row with no finite maximum (a NaN or an
        infinity in its logits) has ``error`` set instead of a token; its neighbours are not touched.
        ``logprob`` is that of the model's own distribution, in float32, and None unless asked for.

    Raises:
        BatchLost, BackendDead: The device failed, here or in work that was started before.
    """
    if logits_BV.ndim != 2 or len(rows) != logits_BV.shape[0]:
        raise ValueError(f"{len(rows)} rows for logits of shape {tuple(logits_BV.shape)}")
    with batch_errors("choosing the next tokens"):
        ids_B, is_finite_B, logprobs_B = _choose(logits_BV, rows).tolist()
        top_B = _top_logprobs(logits_BV, rows)
    return [
        None
        if row is None
        else sampled(int(token_id), is_finite == 1.0, logprob if row.logprobs else None, top)
        for row, token_id, is_finite, logprob, top in zip(
            rows, ids_B, is_finite_B, logprobs_B, top_B, strict=True
        )
    ]


def warm_up(device: torch.device, limits: BackendLimits) -> None:
    """Choose once in every way: a GPU loads each kernel at its first use, which takes long enough to notice.

    Args:
        device: Where the logits will be.
        limits: How many there will be.
    """
    for num_rows in {1, limits.max_batch_size}:
        logits_BV = torch.randn(num_rows, limits.vocab_size, device=device)
        for sampling in (SamplingParams(1), EVERY_FILTER):
            row = SamplerRow(sampling, (0, 0), (), eos_token_ids=(0,), logprobs=True, num_top_logprobs=2)
            sample(logits_BV, [row] * num_rows)


Top = tuple[tuple[int, float], ...]


def sampled(token_id: int, is_finite: bool, logprob: float | None, top: Top) -> Sampled:
    """One row's result.

    Args:
        token_id: The token.
        is_finite: Its scores had a finite maximum; if not, the row failed.
        logprob: Its log-probability, None unless asked for.
        top: The most likely tokens that were asked for, and their log-probabilities.
    """
    if not is_finite:
        return Sampled(error=InternalError("the logits of the next token are not finite numbers"))
    return Sampled(token_id, logprob, top_logprobs=top)


def _top_logprobs(logits_BV: torch.Tensor, rows: Sequence[SamplerRow | None]) -> list[Top]:
    """The most likely tokens of each row that asks for them, the likeliest first."""
    wanted = [row.num_top_logprobs if row is not None else 0 for row in rows]
    if not any(wanted):
        return [()] * len(rows)
    num_top = min(max(wanted), logits_BV.shape[1])
    values_BK, ids_BK = logits_BV.float().log_softmax(dim=-1).topk(num_top, dim=-1)
    values, ids = torch.stack([values_BK.double(), ids_BK.double()]).tolist()
    return [
        tuple(
            (int(token_id), value) for token_id, value in list(zip(ids[b], values[b], strict=True))[:number]
        )
        for b, number in enumerate(wanted)
    ]


def _choose(logits_BV: torch.Tensor, rows: Sequence[SamplerRow | None]) -> torch.Tensor:
    """Token ids, whether all went well (0 or 1) and log-probabilities, float64, [3, B]."""
    # max takes a NaN for the largest, so the maximum tells of NaN, +inf and a row of -inf alike
    best_B1, ids_B1 = logits_BV.max(dim=-1, keepdim=True)
    is_finite_B1 = best_B1.isfinite()
    planned = _planned(rows, logits_BV.shape[1])
    picked = [b for b, row in enumerate(planned) if row is not None]
    if picked:
        index_R = torch.tensor(picked, device=logits_BV.device)
        work = _Work.of([row for row in planned if row is not None], rows, logits_BV)
        best_R, ids_R = work.plan.choose(logits_BV[index_R].float(), work.words_W, work.history_BC)
        ids_B1[index_R, 0] = ids_R
        is_finite_B1[index_R, 0] &= best_R.isfinite()
    logprobs_B1 = torch.zeros_like(ids_B1, dtype=torch.float32)
    if any(row is not None and row.logprobs for row in rows):
        logprobs_B1 = logits_BV.float().log_softmax(dim=-1).gather(1, ids_B1)
    # float64 holds every token id exactly: one tensor, one transfer
    return torch.cat([ids_B1.double(), is_finite_B1.double(), logprobs_B1.double()], dim=1).T.cpu()


def process_scores(scores_BV: torch.Tensor, rows: Sequence[SamplerRow]) -> torch.Tensor:
    """Apply each row's penalties and filters.

    Args:
        scores_BV: float32 logits; not changed.
        rows: One a row.

    Returns:
        float32 scores, -inf where a token cannot be chosen.
    """
    num_vocab = scores_BV.shape[1]
    work = _Work.of([_planned_row(b, row, num_vocab) for b, row in enumerate(rows)], rows, scores_BV)
    return work.plan.process(scores_BV, work.words_W, work.history_BC)


def _planned(rows: Sequence[SamplerRow | None], vocab_size: int) -> list[PlannedRow | None]:
    """One entry a row, None where the token is the logits' own maximum or not wanted."""
    planned = [None if row is None else _planned_row(b, row, vocab_size) for b, row in enumerate(rows)]
    return [None if one is None or one.is_plain else one for one in planned]


def _planned_row(slot: int, row: SamplerRow, vocab_size: int) -> PlannedRow:
    num_prompt = len(row.prompt_ids)
    constants = profile(row.sampling, num_prompt, row.eos_token_ids, vocab_size)
    return PlannedRow(constants, slot, num_prompt + len(row.generated_ids))


@dataclass(frozen=True, slots=True)
class _Work:
    """A plan and what it needs on the device."""

    plan: ScorePlan
    words_W: torch.Tensor
    history_BC: torch.Tensor

    @staticmethod
    def of(planned: Sequence[PlannedRow], rows: Sequence[SamplerRow | None], like: torch.Tensor) -> "_Work":
        upload = Upload()
        plan = plan_scores(planned, like.shape[1], upload)
        history_BC = _history(rows, like.device) if plan.reads_history else like.new_zeros(0, 0)
        return _Work(plan, upload.to(like.device), history_BC)


def _history(rows: Sequence[SamplerRow | None], device: torch.device) -> torch.Tensor:
    """Token ids, prompt and generated, one row a row, padded with zeros."""
    ids = [() if row is None else (*row.prompt_ids, *row.generated_ids) for row in rows]
    return torch.tensor(list(zip_longest(*ids, fillvalue=0)), device=device).T
