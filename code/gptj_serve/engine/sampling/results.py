"""The results of a step's sampling: written on the device, copied to the host in one transfer, read late.

Shape suffixes: B rows that choose a token, R those of them whose scores were changed first, L those that
report log-probabilities, K likeliest tokens, W words of the transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.sampling.packing import Layout
from gptj_serve.engine.scheduler import Sampled
from gptj_serve.engine.static.sampler import Top, sampled
from gptj_serve.request import GenerationRequest


@dataclass(frozen=True, slots=True)
class Results:
    """What the transfer brings, as views of its buffer, on either side.

    Attributes:
        ids_B: int64, the tokens. Where a row failed the id means nothing, but the vocabulary has it.
        best_B: Largest logits, in the logits' type; whether they are finite is for the host to see.
        scored_R: float32, largest scores of the rows whose scores were changed.
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


class Choice:
    """The tokens of one step: on the device in launch order, on the host when `results` returns.

    Args:
        requests: Whose tokens they are, one a row.
        scored: Which rows had their scores changed, in order.
        reported: Which rows report log-probabilities, in order.
        num_top: K.
        dtype: The logits'.
        device: Where they are.

    Attributes:
        on_device: The results there, to be written once.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        scored: Sequence[int],
        reported: Sequence[int],
        num_top: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._requests = requests
        self._scored = scored
        self._reported = reported
        self._num_top = num_top
        self._layout = Layout()
        self._fields = (
            self._layout.add(len(requests), torch.int64),
            self._layout.add(len(requests), dtype),
            self._layout.add(len(scored), torch.float32),
            self._layout.add(len(reported), torch.float32),
            self._layout.add(len(reported) * num_top, torch.float32),
            self._layout.add(len(reported) * num_top, torch.int64),
        )
        self._words_W = torch.empty(self._layout.num_words, dtype=torch.int64, device=device)
        self._host_W: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        self.on_device = self._views(self._words_W)

    def to_host(self) -> None:
        """Start the copy to the host, behind all work of the current stream; does not wait for it.

        Raises:
            BatchLost, BackendDead: The device failed, here or in work that was started before.
        """
        device = self._words_W.device
        with batch_errors("choosing the next tokens"):
            self._host_W = self._layout.host_buffer(device)
            self._host_W.copy_(self._words_W, non_blocking=True)
            if device.type == "cuda":
                self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self._copied.record(torch.cuda.current_stream(device))

    def results(self) -> list[Sampled]:
        """Wait for the copy that `to_host` started.

        Returns:
            One entry a row, as `gptj_serve.engine.static.sampler.sample` has them.

        Raises:
            ValueError: No copy was started.
            BatchLost, BackendDead: The device failed, here or in work that was started before.
        """
        if self._host_W is None:
            raise ValueError("no copy to the host was started")
        with batch_errors("choosing the next tokens"):
            if self._copied is not None:
                self._copied.synchronize()
            return self._read(self._views(self._host_W))

    def _views(self, words_W: torch.Tensor) -> Results:
        ids_B, best_B, scored_R, logprobs_L, top_values, top_ids = (
            field.of(words_W) for field in self._fields
        )
        shape = (len(self._reported), self._num_top)
        return Results(ids_B, best_B, scored_R, logprobs_L, top_values.view(shape), top_ids.view(shape))

    def _read(self, host: Results) -> list[Sampled]:
        is_finite_B: list[bool] = host.best_B.isfinite().tolist()
        for b, is_finite in zip(self._scored, host.scored_R.isfinite().tolist(), strict=True):
            is_finite_B[b] = is_finite_B[b] and is_finite
        logprob_B: dict[int, float] = dict(zip(self._reported, host.logprobs_L.tolist(), strict=True))
        top_B = dict(zip(self._reported, _tops(host), strict=True))
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


def _tops(host: Results) -> list[Top]:
    rows = zip(host.top_ids_LK.tolist(), host.top_values_LK.tolist(), strict=True)
    return [tuple(zip(ids, values, strict=True)) for ids, values in rows]
