"""Chooses next tokens without the host ever waiting: the next step is launched before they are known.

The choices are those of `gptj_serve.engine.static.sampler` (one `score_plan`, one set of filters); what
differs is where ids come from and where results go. A sequence's ids, prompt and generated, lie in its
row of the history on the device, and so does the chosen one as soon as it is chosen. The host knows how
many there are, never which.

Parameters go up in one copy from page-locked memory, results come back in another, and no size depends on
anything but what the host knows. Rows that only take the maximum of their logits cost one reduction
together, and nothing more.

Temporaries at their peak: 40 bytes for each row that needs more than a maximum and each token of the
vocabulary, and with top-p or typical-p what the device takes to sort, about as much again. So 130 to 260 MB
for 64 rows of 50400 tokens.

Shape suffixes: B rows that choose a token, R those of them whose scores are changed first, L those that
report log-probabilities, V vocabulary, S slots plus one, C positions plus one, W words of the upload.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.fused.schedule.plan import Row, RunnerLimits
from gptj_serve.engine.sampling.packing import Field, PickedRows, Upload
from gptj_serve.engine.sampling.profile import Profile, profile
from gptj_serve.engine.sampling.results import Choice, Results
from gptj_serve.engine.sampling.score_plan import EVERY_FILTER, PlannedRow, ScorePlan, plan_scores
from gptj_serve.request import GenerationRequest, SamplingParams


@dataclass(frozen=True, slots=True)
class _Step:
    """One step, planned on the host.

    Attributes:
        upload: All numbers that the device needs.
        requests: Whose tokens are chosen, one a row.
        places: Where each row's token goes in the flat history, int64 [B].
        plan: What happens to the scores of the rows below; None if they are none.
        scored: Those rows; ``scored_rows`` on the host.
        reported: The rows that report log-probabilities; ``reported_rows`` on the host.
        num_top: Likeliest tokens to report, the most that any row wants.
    """

    upload: Upload
    requests: tuple[GenerationRequest, ...]
    places: Field
    plan: ScorePlan | None
    scored_rows: Sequence[int]
    scored: PickedRows
    reported_rows: Sequence[int]
    reported: PickedRows
    num_top: int

    @staticmethod
    def of(
        requests: tuple[GenerationRequest, ...],
        planned: Sequence[PlannedRow],
        num_positions: int,
        vocab_size: int,
    ) -> "_Step":
        upload = Upload()
        places = upload.add([row.slot * num_positions + row.end for row in planned], torch.int64)
        scored = [b for b, row in enumerate(planned) if not row.is_plain]
        reported = [b for b, one in enumerate(requests) if one.logprobs or one.num_top_logprobs]
        return _Step(
            upload,
            requests,
            places,
            plan_scores([planned[b] for b in scored], vocab_size, upload) if scored else None,
            scored,
            PickedRows.of(scored, len(requests), upload),
            reported,
            PickedRows.of(reported, len(requests), upload),
            min(max((requests[b].num_top_logprobs for b in reported), default=0), vocab_size),
        )


class DeviceSampler:
    """Chooses one token a row and appends it to the row's history.

    Args:
        history_SC: Token ids, int64 or int32, contiguous, on the device: one row a slot and a last one for
            padding, max_context + 1 positions. Belongs to the runner, who has launched before a choice
            what puts all ids below its rows' ends there.
        vocab_size: Width of the logits.
    """

    def __init__(self, history_SC: torch.Tensor, vocab_size: int) -> None:
        if history_SC.ndim != 2 or not history_SC.is_contiguous():
            raise ValueError(f"the history must be a contiguous matrix, not {tuple(history_SC.shape)}")
        self._history_SC = history_SC
        self._vocab_size = vocab_size
        num_slots = history_SC.shape[0] - 1
        self._profiles: list[tuple[GenerationRequest, Profile] | None] = [None] * num_slots

    @torch.inference_mode()
    def choose(self, logits_BV: torch.Tensor, rows: Sequence[Row]) -> Choice:
        """Choose one token a row, behind all work of the current stream; does not wait for it.

        Args:
            logits_BV: Next-token logits of any floating type, on the history's device; not changed.
            rows: One a row of the logits; the token gets the position ``end`` of the slot's history.

        Raises:
            ValueError: Rows do not match the logits or the history; nothing has run.
            BatchLost, BackendDead: The device failed, here or in work that was started before.
        """
        if logits_BV.shape != (len(rows), self._vocab_size):
            raise ValueError(f"{len(rows)} rows for logits of shape {tuple(logits_BV.shape)}")
        requests = tuple(row.request for row in rows)
        planned = [self._planned(row) for row in rows]
        with batch_errors("choosing the next tokens"):
            step = _Step.of(requests, planned, self._history_SC.shape[1], self._vocab_size)
            return self._choose(logits_BV, step)

    def _planned(self, row: Row) -> PlannedRow:
        num_slots, num_positions = len(self._profiles), self._history_SC.shape[1]
        request, slot, end = row.request, row.slot, row.end
        if not (0 <= slot < num_slots and len(request.prompt_ids) <= end < num_positions):
            raise ValueError(
                f"slot {slot} must be 0 to {num_slots - 1}, the token's position {end} "
                f"{len(request.prompt_ids)} (its prompt) to {num_positions - 1}"
            )
        known = self._profiles[slot]
        if known is None or known[0] is not request:
            constants = profile(
                request.sampling, len(request.prompt_ids), request.eos_token_ids, self._vocab_size
            )
            known = self._profiles[slot] = (request, constants)
        return PlannedRow(known[1], slot, end)

    def _choose(self, logits_BV: torch.Tensor, step: _Step) -> Choice:
        words_W = step.upload.to(logits_BV.device)
        choice = Choice(
            step.requests,
            step.scored_rows,
            step.reported_rows,
            step.num_top,
            logits_BV.dtype,
            logits_BV.device,
        )
        results = choice.on_device
        # max takes a NaN for the largest, so it tells of NaN, +inf and a row of -inf alike
        torch.max(logits_BV, dim=-1, out=(results.best_B, results.ids_B))
        if step.plan is not None:
            scores_RV = step.scored.select(logits_BV, words_W).float()
            best_R, ids_R = step.plan.choose(scores_RV, words_W, self._history_SC)
            results.scored_R.copy_(best_R)
            results.ids_B.copy_(step.scored.replace(results.ids_B, ids_R, words_W))
        if step.reported_rows:
            _report(logits_BV, step, words_W, results)
        tokens_B = results.ids_B.to(self._history_SC.dtype)
        self._history_SC.view(-1).scatter_(0, step.places.of(words_W), tokens_B)
        return choice


def _report(logits_BV: torch.Tensor, step: _Step, words_W: torch.Tensor, results: Results) -> None:
    logprobs_LV = step.reported.select(logits_BV, words_W).float().log_softmax(dim=-1)
    ids_L1 = step.reported.select(results.ids_B, words_W).unsqueeze(1)
    torch.gather(logprobs_LV, 1, ids_L1, out=results.logprobs_L.unsqueeze(1))
    if step.num_top:
        torch.topk(logprobs_LV, step.num_top, out=(results.top_values_LK, results.top_ids_LK))


def warm_up(device: torch.device, dtype: torch.dtype, limits: RunnerLimits) -> None:
    """Choose once in every way: a GPU loads each kernel at its first use, which takes long enough to notice.

    Args:
        device: Where the logits will be.
        dtype: Their type.
        limits: How many there will be.
    """
    history_SC = torch.zeros(limits.max_batch_size + 1, 3, dtype=torch.int64, device=device)
    sampler = DeviceSampler(history_SC, limits.vocab_size)
    plain, every = _warm_up_request(SamplingParams(1)), _warm_up_request(EVERY_FILTER, num_top_logprobs=2)
    draws = _warm_up_request(SamplingParams(1, do_sample=True))
    for num_rows in {1, limits.max_batch_size}:
        logits_BV = torch.randn(num_rows, limits.vocab_size, device=device).to(dtype)
        # side by side, rows are picked out of the batch
        for mix in ((plain,), (every,), (plain, every, draws)):
            requests = islice(cycle(mix), num_rows)
            choice = sampler.choose(logits_BV, [_warm_up_row(*pair) for pair in enumerate(requests)])
            choice.to_host()
            choice.results()


def _warm_up_request(sampling: SamplingParams, num_top_logprobs: int = 0) -> GenerationRequest:
    return GenerationRequest(
        "warm-up",
        (0, 0),
        sampling,
        eos_token_ids=(0,),
        logprobs=num_top_logprobs > 0,
        num_top_logprobs=num_top_logprobs,
    )


def _warm_up_row(slot: int, request: GenerationRequest) -> Row:
    return Row(0, 0, request, slot, blocks=(), start=0, token_ids=request.prompt_ids, samples=True)
