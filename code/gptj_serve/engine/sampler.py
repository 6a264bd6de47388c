"""Chooses the next token of every row, as Transformers' ``generate`` would.

Order: what OpenAI's API adds to logits (bias, presence and frequency penalties); then that of
``GenerationMixin._get_logits_processor``: repetition penalty, no end of sequence before
``min_new_tokens``; then, when sampling, temperature, top-k, top-p, typical-p. Rows are worked on
together, each filter on the rows that asked for it alone; one transfer brings all results back (and a
second one the likeliest tokens, if a row asks for them).

A draw is the inverse of the cumulative distribution in the order of token ids, at a number that
depends on the seed, the sequence and the position alone (`gptj_serve.engine.uniform`).

Shape suffixes: B rows of the batch, R rows picked out of it, V vocabulary, N scattered elements.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptj_serve.engine.backend import BackendLimits
from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.scheduler import Sampled
from gptj_serve.engine.uniform import uniform
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

    @property
    def additions(self) -> dict[int, float]:
        """What is added to the logits of single tokens."""
        added = defaultdict(float, self.sampling.logit_bias)
        presence, frequency = self.sampling.presence_penalty, self.sampling.frequency_penalty
        if presence or frequency:
            for token_id, count in Counter(self.generated_ids).items():
                added[token_id] -= presence + frequency * count
        return added

    @property
    def holds_back_eos(self) -> bool:
        """No end of sequence may be chosen yet."""
        return len(self.generated_ids) < self.sampling.min_new_tokens and bool(self.eos_token_ids)

    @property
    def is_plain_greedy(self) -> bool:
        """The token is the logits' own maximum."""
        sampling = self.sampling
        changes = (
            sampling.do_sample
            or sampling.repetition_penalty != 1.0
            or sampling.presence_penalty
            or sampling.frequency_penalty
            or sampling.logit_bias
        )
        return not (changes or self.holds_back_eos)


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
        None if row is None else _result(row, int(token_id), is_finite == 1.0, logprob, top)
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
    everything = SamplingParams(
        2,
        1,
        do_sample=True,
        temperature=0.9,
        top_k=5,
        top_p=0.9,
        typical_p=0.9,
        repetition_penalty=1.1,
        logit_bias=((0, 1.0),),
    )
    for num_rows in {1, limits.max_batch_size}:
        logits_BV = torch.randn(num_rows, limits.vocab_size, device=device)
        for sampling in (SamplingParams(1), everything):
            row = SamplerRow(sampling, (0,), (), eos_token_ids=(0,), logprobs=True, num_top_logprobs=2)
            sample(logits_BV, [row] * num_rows)


Top = tuple[tuple[int, float], ...]


def _result(row: SamplerRow, token_id: int, is_finite: bool, logprob: float, top: Top) -> Sampled:
    if not is_finite:
        return Sampled(error=InternalError("the logits of the next token are not finite numbers"))
    return Sampled(token_id, logprob if row.logprobs else None, top_logprobs=top)


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
    ids_B1 = logits_BV.argmax(dim=-1, keepdim=True)
    # argmax takes a NaN for the largest, so the maximum tells of NaN, +inf and a row of -inf alike
    is_finite_B1 = logits_BV.gather(1, ids_B1).isfinite()
    picked = [(b, row) for b, row in enumerate(rows) if row is not None and not row.is_plain_greedy]
    if picked:
        index_R = torch.tensor([b for b, _ in picked], device=logits_BV.device)
        ids_R1, is_finite_R1 = _choose_processed(logits_BV[index_R].float(), [row for _, row in picked])
        ids_B1[index_R] = ids_R1
        is_finite_B1[index_R] &= is_finite_R1
    logprobs_B1 = torch.zeros_like(ids_B1, dtype=torch.float32)
    if any(row is not None and row.logprobs for row in rows):
        logprobs_B1 = logits_BV.float().log_softmax(dim=-1).gather(1, ids_B1)
    # float64 holds every token id exactly: one tensor, one transfer
    return torch.cat([ids_B1.double(), is_finite_B1.double(), logprobs_B1.double()], dim=1).T.cpu()


def _choose_processed(
    scores_RV: torch.Tensor, rows: Sequence[SamplerRow]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and whether the processed scores still had a finite maximum, both [R, 1]."""
    scores_RV = process_scores(scores_RV, rows)
    ids_R1 = scores_RV.argmax(dim=-1, keepdim=True)
    is_finite_R1 = scores_RV.gather(1, ids_R1).isfinite()
    sampled = [r for r, row in enumerate(rows) if row.sampling.do_sample]
    if sampled:
        index_S = torch.tensor(sampled, device=scores_RV.device)
        uniforms = [_uniform(rows[r]) for r in sampled]
        ids_R1[index_S] = _draw(scores_RV[index_S], uniforms)
    return ids_R1, is_finite_R1


def process_scores(scores_RV: torch.Tensor, rows: Sequence[SamplerRow]) -> torch.Tensor:
    """Apply each row's penalties and filters.

    Args:
        scores_RV: float32 logits; may be overwritten.
        rows: One a row.

    Returns:
        float32 scores, -inf where a token cannot be chosen.
    """
    _add(scores_RV, rows)
    _penalise_repetition(scores_RV, rows)
    _hold_back_eos(scores_RV, rows)
    for apply_filter, value in _FILTERS:
        values = {r: value(row.sampling) for r, row in enumerate(rows) if row.sampling.do_sample}
        wanted = {r: number for r, number in values.items() if number is not None}
        if wanted:
            index_F = torch.tensor(list(wanted), device=scores_RV.device)
            scores_RV[index_F] = apply_filter(scores_RV[index_F], list(wanted.values()))
    return scores_RV


def _add(scores_RV: torch.Tensor, rows: Sequence[SamplerRow]) -> None:
    places = [
        (r, token_id, value)
        for r, row in enumerate(rows)
        for token_id, value in row.additions.items()
        if 0 <= token_id < scores_RV.shape[1]
    ]
    if places:
        row_N, id_N, value_N = zip(*places, strict=True)
        index_2N = torch.tensor((row_N, id_N), device=scores_RV.device)
        scores_RV[index_2N[0], index_2N[1]] += torch.tensor(
            value_N, dtype=scores_RV.dtype, device=scores_RV.device
        )


def _penalise_repetition(scores_RV: torch.Tensor, rows: Sequence[SamplerRow]) -> None:
    places = [
        (r, token_id, row.sampling.repetition_penalty)
        for r, row in enumerate(rows)
        if row.sampling.repetition_penalty != 1.0
        for token_id in {*row.prompt_ids, *row.generated_ids}
    ]
    if not places:
        return
    row_N, id_N, penalty_N = zip(*places, strict=True)
    index_2N = torch.tensor((row_N, id_N), device=scores_RV.device)
    penalty = torch.tensor(penalty_N, dtype=scores_RV.dtype, device=scores_RV.device)
    score_N = scores_RV[index_2N[0], index_2N[1]]
    penalised_N = torch.where(score_N < 0, score_N * penalty, score_N / penalty)
    scores_RV[index_2N[0], index_2N[1]] = penalised_N


def _hold_back_eos(scores_RV: torch.Tensor, rows: Sequence[SamplerRow]) -> None:
    places = [
        (r, token_id)
        for r, row in enumerate(rows)
        if row.holds_back_eos
        for token_id in row.eos_token_ids
        if 0 <= token_id < scores_RV.shape[1]
    ]
    if places:
        index_N2 = torch.tensor(places, device=scores_RV.device)
        scores_RV[index_N2[:, 0], index_N2[:, 1]] = float("-inf")


def _divide_by_temperature(scores_RV: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    return scores_RV / _column(temperatures, scores_RV)


def _keep_top_k(scores_RV: torch.Tensor, top_ks: Sequence[float]) -> torch.Tensor:
    """Keep the k largest and whatever equals the smallest of them."""
    ks = [min(int(k), scores_RV.shape[1]) for k in top_ks]
    largest_RK = scores_RV.topk(max(ks), dim=-1).values
    last_R1 = torch.tensor([[k - 1] for k in ks], device=scores_RV.device)
    return scores_RV.masked_fill(scores_RV < largest_RK.gather(1, last_R1), float("-inf"))


def _keep_top_p(scores_RV: torch.Tensor, top_ps: Sequence[float]) -> torch.Tensor:
    """Drop the least likely tokens that together have no more than 1 - p; the last one always stays."""
    sorted_RV, order_RV = scores_RV.sort(dim=-1, stable=True)
    # 1 - p is formed in float64 and rounded once, as Transformers' scalar is
    drop_RV = sorted_RV.softmax(dim=-1).cumsum(dim=-1) <= _column([1 - p for p in top_ps], scores_RV)
    drop_RV[:, -1] = False
    return _fill(scores_RV, order_RV, drop_RV)


def _keep_typical(scores_RV: torch.Tensor, masses: Sequence[float]) -> torch.Tensor:
    """Keep the tokens whose surprise is nearest the entropy, until they have this much probability."""
    logp_RV = scores_RV.log_softmax(dim=-1)
    entropy_R1 = -(logp_RV * logp_RV.exp()).nansum(dim=-1, keepdim=True)
    distance_RV, order_RV = (-logp_RV - entropy_R1).abs().sort(dim=-1, stable=True)
    mass_RV = scores_RV.gather(1, order_RV).softmax(dim=-1).cumsum(dim=-1)
    last_R1 = (mass_RV < _column(masses, scores_RV)).sum(dim=-1, keepdim=True)
    drop_RV = distance_RV > distance_RV.gather(1, last_R1.clamp(max=scores_RV.shape[1] - 1))
    drop_RV[:, 0] = False
    return _fill(scores_RV, order_RV, drop_RV)


def _fill(scores_RV: torch.Tensor, order_RV: torch.Tensor, drop_RV: torch.Tensor) -> torch.Tensor:
    return scores_RV.masked_fill(drop_RV.scatter(1, order_RV, drop_RV), float("-inf"))


def _draw(scores_RV: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    """The first token whose cumulative probability is above the uniform number, [R, 1].

    Sums of floats do not behave: ``u * total`` can round up to the total, and a parallel sum need not
    rise everywhere. So only tokens that have a probability may win, and the last of them wins by default.
    """
    probs_RV = scores_RV.double().softmax(dim=-1)
    cumulative_RV = probs_RV.cumsum(dim=-1)
    target_R1 = _column(uniforms, cumulative_RV) * cumulative_RV[:, -1:]
    is_possible_RV = probs_RV > 0
    is_hit_RV = (cumulative_RV > target_R1) & is_possible_RV
    num_tokens = scores_RV.shape[1]
    last_R1 = num_tokens - 1 - is_possible_RV.flip(-1).int().argmax(dim=-1, keepdim=True)
    first_R1 = is_hit_RV.int().argmax(dim=-1, keepdim=True)
    return torch.where(is_hit_RV.any(dim=-1, keepdim=True), first_R1, last_R1)


def _uniform(row: SamplerRow) -> float:
    return uniform(row.sampling.seed, row.sampling.sequence_index, len(row.generated_ids))


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


_Filter = Callable[[torch.Tensor, Sequence[float]], torch.Tensor]
_Value = Callable[[SamplingParams], float | None]

_FILTERS: tuple[tuple[_Filter, _Value], ...] = (
    (_divide_by_temperature, lambda sampling: sampling.temperature if sampling.temperature != 1.0 else None),
    (_keep_top_k, lambda sampling: sampling.top_k or None),
    (_keep_top_p, lambda sampling: sampling.top_p if sampling.top_p < 1.0 else None),
    (_keep_typical, lambda sampling: sampling.typical_p if sampling.typical_p < 1.0 else None),
)
