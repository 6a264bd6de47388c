"""Chooses next tokens, as Transformers' ``generate`` would, without the host ever waiting for the device.

`gptj_serve.engine.sampling.score_plan` decides what is done with the scores and in which order. A draw is the
inverse of the cumulative distribution in the order of token ids, at a number that depends only on the seed,
the sequence and the position (`gptj_serve.engine.sampling.uniform`).

A sequence's ids, prompt and generated, are in its row of a history on the device, and so is a chosen id as
soon as it is chosen. The host knows how many there are, but need not know which: continuous batching launches
the next step before it knows them, and static batching reads them at once.

Parameters go up in one copy from page-locked memory, results come back in another, and sizes depend only on
what the host knows. Rows that only take the argmax of their logits cost one reduction together.

Temporaries at their peak: 40 bytes for each row that needs more than the argmax and each token of the
vocabulary, and with top-p or typical-p what the device takes to sort, about as much again. So 130 to 260 MB
for 64 rows of 50400 tokens.

Shape suffixes: B rows that choose a token, R those of them whose scores are changed first, L those that
report log-probabilities, V vocabulary, S slots, C positions, W words of the upload.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.sampling.packing import PickedRows, Upload
from gptj_serve.engine.sampling.profile import Profile, profile
from gptj_serve.engine.sampling.results import WHAT, Choice, ResultLayout, Results
from gptj_serve.engine.sampling.score_plan import EVERY_FILTER, PlannedRow, plan_scores
from gptj_serve.request import GenerationRequest, SamplingParams


@dataclass(frozen=True, slots=True)
class SamplerRow:
    """A row of the logits, which chooses a token.

    Attributes:
        request: The sequence's request. Token ids outside the vocabulary are ignored in it.
        slot: The row of the history that has the sequence's ids, 0..S-1.
        end: How many of them count, at least the prompt's, C - 1 at most: the token gets this position, and
            is the sequence's number ``end - len(prompt_ids)`` counted from 0.
    """

    request: GenerationRequest
    slot: int
    end: int


class Sampler:
    """Chooses a token for each row and appends it to the history of the row's sequence.

    Args:
        history_SC: Token ids, int64 or int32, contiguous, on the device. Belongs to the runner, who has
            launched before a choice what puts all ids below its rows' ends there.
        vocab_size: Width of the logits, V.

    Raises:
        ValueError: The history is no contiguous matrix.
    """

    def __init__(self, history_SC: torch.Tensor, vocab_size: int) -> None:
        if history_SC.ndim != 2 or not history_SC.is_contiguous():
            raise ValueError(f"the history must be a contiguous matrix, not {tuple(history_SC.shape)}")
        self._history_SC = history_SC
        self._vocab_size = vocab_size
        self._profiles: list[tuple[GenerationRequest, Profile] | None] = [None] * history_SC.shape[0]

    @torch.inference_mode()
    def choose(self, logits_BV: torch.Tensor, rows: Sequence[SamplerRow]) -> Choice:
        """Choose a token for each row behind all work of the current stream, without waiting for it.

        All rows see the history as it was before: several of one slot may follow each other, as those of
        guessed tokens do that the runner has put there.

        Args:
            logits_BV: Next-token logits of any floating type, on the history's device; not changed.
            rows: One for each row of the logits.

        Raises:
            ValueError: Rows do not match the logits or the history; nothing has run.
            BatchLost, BackendDead: The device failed, here or in work that was started before.
        """
        if logits_BV.shape != (len(rows), self._vocab_size):
            raise ValueError(f"{len(rows)} rows for logits of shape {tuple(logits_BV.shape)}")
        planned = [self._planned(row) for row in rows]
        with batch_errors(WHAT):
            return self._choose(logits_BV, rows, planned)

    def _planned(self, row: SamplerRow) -> PlannedRow:
        num_slots, num_positions = self._history_SC.shape
        request, slot, end = row.request, row.slot, row.end
        if not (0 <= slot < num_slots and len(request.prompt_ids) <= end < num_positions):
            raise ValueError(
                f"slot {slot} must be 0 to {num_slots - 1}, the token's position {end} "
                f"{len(request.prompt_ids)} (its prompt) to {num_positions - 1}"
            )
        known = self._profiles[slot]
        if known is None or known[0] is not request:
            known = self._profiles[slot] = (request, profile(request, self._vocab_size))
        return PlannedRow(known[1], slot, end)

    def _choose(
        self, logits_BV: torch.Tensor, rows: Sequence[SamplerRow], planned: Sequence[PlannedRow]
    ) -> Choice:
        upload, num_positions, device = Upload(), self._history_SC.shape[1], logits_BV.device
        places = upload.add([row.slot * num_positions + row.end for row in rows], torch.int64)
        scored = [b for b, row in enumerate(planned) if not row.takes_argmax]
        plan = plan_scores([planned[b] for b in scored], self._vocab_size, upload) if scored else None
        layout = ResultLayout([row.request for row in rows], scored, logits_BV.dtype, self._vocab_size)
        scored_rows, reported_rows = (
            PickedRows.of(picked, len(rows), upload) for picked in (scored, layout.reported)
        )
        words_W = upload.to(device)
        result_words_W = torch.empty(layout.num_words, dtype=torch.int64, device=device)
        results = layout.views(result_words_W)
        # max takes a NaN for the largest, so it tells of NaN, +inf and a row of -inf alike
        torch.max(logits_BV, dim=-1, out=(results.best_B, results.ids_B))
        if plan is not None:
            scores_RV = scored_rows.select(logits_BV, words_W).float()
            best_R, ids_R = plan.choose(scores_RV, words_W, self._history_SC)
            results.scored_R.copy_(best_R)
            results.ids_B.copy_(scored_rows.replace(results.ids_B, ids_R, words_W))
        if layout.reported:
            logits_LV = reported_rows.select(logits_BV, words_W)
            _report(logits_LV, reported_rows.select(results.ids_B, words_W), layout.num_top, results)
        tokens_B = results.ids_B.to(self._history_SC.dtype)
        self._history_SC.view(-1).scatter_(0, places.of(words_W), tokens_B)
        return Choice(layout, result_words_W)


def _report(logits_LV: torch.Tensor, ids_L: torch.Tensor, num_top: int, results: Results) -> None:
    logprobs_LV = logits_LV.float().log_softmax(dim=-1)
    torch.gather(logprobs_LV, 1, ids_L.unsqueeze(1), out=results.logprobs_L.unsqueeze(1))
    if num_top:
        torch.topk(logprobs_LV, num_top, out=(results.top_values_LK, results.top_ids_LK))


def warm_up(device: torch.device, dtype: torch.dtype, max_rows: int, vocab_size: int) -> None:
    """Choose once in every way, as a GPU loads each kernel at its first use, which takes noticeably long.

    Args:
        device: The device of the logits.
        dtype: The logits' type.
        max_rows: How many rows there will be at most.
        vocab_size: How many logits a row has.
    """
    history_SC = torch.zeros(max_rows, 3, dtype=torch.int64, device=device)
    sampler = Sampler(history_SC, vocab_size)
    plain, every = _warm_up_request(SamplingParams(1)), _warm_up_request(EVERY_FILTER, num_top_logprobs=2)
    draws = _warm_up_request(SamplingParams(1, do_sample=True))
    for num_rows in {1, max_rows}:
        logits_BV = torch.randn(num_rows, vocab_size, device=device).to(dtype)
        # side by side, rows are picked out of the batch
        for mix in ((plain,), (every,), (plain, every, draws)):
            requests = islice(cycle(mix), num_rows)
            rows = [SamplerRow(request, slot, end=2) for slot, request in enumerate(requests)]
            sampler.choose(logits_BV, rows).results()


def _warm_up_request(sampling: SamplingParams, num_top_logprobs: int = 0) -> GenerationRequest:
    return GenerationRequest(
        "warm-up",
        (0, 0),
        sampling,
        eos_token_ids=(0,),
        logprobs=num_top_logprobs > 0,
        num_top_logprobs=num_top_logprobs,
    )
