"""The results of a step's sampling, which are written on the device and copied to the host in one transfer.

Shape suffixes: B rows that choose a token, R those of them whose scores were changed first, L those that
report log-probabilities, K likeliest tokens, W words of the transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptj_serve.engine.sampling.packing import Download, Field, Layout
from gptj_serve.engine.scheduler import Sampled
from gptj_serve.errors import InternalError
from gptj_serve.request import GenerationRequest

WHAT = "choosing the next tokens"
"""What fails when sampling does, in words for the client."""

TopLogprobs = tuple[tuple[int, float], ...]
"""Token ids and their log-probabilities, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Results:
    """What the transfer brings, as views of its buffer on either side.

    Attributes:
        ids_B: int64, the tokens. Where a row failed, the id has no meaning, but the vocabulary has it.
        best_B: The largest logits, in the logits' type; the host checks whether they are finite.
        scored_R: float32, the largest scores of the rows whose scores were changed.
        logprobs_L: float32, of the chosen tokens.
        top_values_LK: float32, log-probabilities, the largest first.
        top_ids_LK: int64, the tokens beside them.
    """

    ids_B: torch.Tensor
    best_B: torch.Tensor
    scored_R: torch.Tensor
    logprobs_L: torch.Tensor
    top_values_LK: torch.Tensor
    top_ids_LK: torch.Tensor


class ResultLayout:
    """Which rows' results a step has, which of them say more than a token, and where they are in the buffer.

    Args:
        requests: The requests whose tokens are chosen, one for each row.
        scored: The rows whose scores are changed, in rising order.
        dtype: The logits' type.
        vocab_size: The logits' width.

    Attributes:
        num_words: W.
        reported: The rows that report log-probabilities, in rising order.
        num_top: K, the most that any row wants; the vocabulary's size at most.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        scored: Sequence[int],
        dtype: torch.dtype,
        vocab_size: int,
    ) -> None:
        self.reported = [b for b, one in enumerate(requests) if one.logprobs or one.num_top_logprobs]
        self.num_top = min(max((requests[b].num_top_logprobs for b in self.reported), default=0), vocab_size)
        self._requests = requests
        self._scored = scored
        layout, num_reported = Layout(), len(self.reported)
        self._fields: tuple[Field, ...] = (
            layout.add(len(requests), torch.int64),
            layout.add(len(requests), dtype),
            layout.add(len(scored), torch.float32),
            layout.add(num_reported, torch.float32),
            layout.add(num_reported * self.num_top, torch.float32),
            layout.add(num_reported * self.num_top, torch.int64),
        )
        self.num_words = layout.num_words

    def views(self, words_W: torch.Tensor) -> Results:
        """The results in a buffer, int64 [W], on either side."""
        ids_B, best_B, scored_R, logprobs_L, top_values, top_ids = (
            field.of(words_W) for field in self._fields
        )
        shape = (len(self.reported), self.num_top)
        return Results(ids_B, best_B, scored_R, logprobs_L, top_values.view(shape), top_ids.view(shape))

    def read(self, words_W: torch.Tensor) -> list[Sampled]:
        """Read the results in the host's buffer, one for each row."""
        host = self.views(words_W)
        is_finite_B: list[bool] = host.best_B.isfinite().tolist()
        for b, is_finite in zip(self._scored, host.scored_R.isfinite().tolist(), strict=True):
            is_finite_B[b] = is_finite_B[b] and is_finite
        logprob_B: dict[int, float] = dict(zip(self.reported, host.logprobs_L.tolist(), strict=True))
        top_B = dict(zip(self.reported, _top_logprobs(host), strict=True))
        return [
            sampled(
                token_id,
                is_finite,
                logprob_B[b] if request.logprobs else None,
                top_B[b][: request.num_top_logprobs] if request.num_top_logprobs else (),
            )
            for b, (request, token_id, is_finite) in enumerate(
                zip(self._requests, host.ids_B.tolist(), is_finite_B, strict=True)
            )
        ]


class Choice:
    """The tokens of one step, on their way to the host.

    Args:
        layout: What is in the buffer.
        words_W: The buffer on the device, int64, with all work launched that writes to it.

    Raises:
        BatchLost, BackendDead: The device failed, here or in work that was started before.
    """

    def __init__(self, layout: ResultLayout, words_W: torch.Tensor) -> None:
        self._layout = layout
        self._download = Download(words_W, WHAT)

    def results(self) -> list[Sampled]:
        """Wait for the tokens.

        Returns:
            One entry for each row. A row with no finite maximum (a NaN or an infinity in its logits, or no
            token that may be chosen) has ``error`` set instead of a token; its neighbours are not touched.
            ``logprob`` is that of the model's own distribution, in float32, and None unless asked for.

        Raises:
            BatchLost, BackendDead: The device failed, here or in work that was started before.
        """
        return self._layout.read(self._download.wait())


def sampled(token_id: int, is_finite: bool, logprob: float | None = None, top: TopLogprobs = ()) -> Sampled:
    """The result of a row.

    Args:
        token_id: The token.
        is_finite: Whether its scores had a finite maximum; otherwise the row failed.
        logprob: The token's log-probability; None unless it was asked for.
        top: The most likely tokens that were asked for, and their log-probabilities.
    """
    if not is_finite:
        return Sampled(error=InternalError("the logits of the next token are not finite numbers"))
    return Sampled(token_id, logprob, top_logprobs=top)


def _top_logprobs(host: Results) -> list[TopLogprobs]:
    rows = zip(host.top_ids_LK.tolist(), host.top_values_LK.tolist(), strict=True)
    return [tuple(zip(ids, values, strict=True)) for ids, values in rows]
