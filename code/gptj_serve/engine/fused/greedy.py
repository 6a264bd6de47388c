"""The kernels' own choice: the largest logit, where nothing else is asked for."""

import torch

from gptj_serve.engine.device_errors import batch_errors
from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.scheduler import Sampled
from gptj_serve.engine.static.sampler import sampled


class GreedyChoice:
    """The tokens of one step; see `gptj_serve.engine.sampling.results.Choice`, whose methods it has.

    Args:
        chosen_2T: As `gptj_serve.engine.fused.kernels.protocol.Scratch` has it.
        num_rows: How many of its columns count.
    """

    def __init__(self, chosen_2T: torch.Tensor, num_rows: int) -> None:
        self._chosen_2T = chosen_2T
        self._num_rows = num_rows
        self._copied: torch.cuda.Event | None = None

    def to_host(self) -> None:
        """Start the copy to the host, behind all work of the current stream; does not wait for it."""
        with batch_errors("choosing the next tokens"):
            if not self._chosen_2T.is_cuda:
                self._chosen_2T = self._chosen_2T.clone()
                return
            host = torch.empty_like(self._chosen_2T, device="cpu", pin_memory=True)
            self._chosen_2T = host.copy_(self._chosen_2T, non_blocking=True)
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def results(self) -> list[Sampled]:
        """Wait for the copy; one entry a row."""
        with batch_errors("choosing the next tokens"):
            if self._copied is not None:
                self._copied.synchronize()
        ids, logits = self._chosen_2T.unbind(0)
        is_finite = logits.view(torch.float32)[: self._num_rows].isfinite().tolist()
        return [
            sampled(token_id, finite, None, ())
            for token_id, finite in zip(ids[: self._num_rows].tolist(), is_finite, strict=True)
        ]


def is_greedy(row: Row) -> bool:
    """The row's token is the largest logit, and nothing is reported of it."""
    request, sampling = row.request, row.request.sampling
    num_generated = row.end - len(request.prompt_ids)
    holds_back = num_generated < sampling.min_new_tokens and request.eos_token_ids
    return not (sampling.changes_scores or holds_back or request.logprobs or request.num_top_logprobs)
