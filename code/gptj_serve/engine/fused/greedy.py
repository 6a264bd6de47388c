"""The kernels' own choice: the largest logit, where nothing else is asked for."""

import torch

from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.sampling.packing import Download
from gptj_serve.engine.sampling.results import WHAT, sampled
from gptj_serve.engine.scheduler import Sampled


class GreedyChoice:
    """The tokens of one step, on their way to the host; see `gptj_serve.engine.sampling.results.Choice`.

    Args:
        chosen_2T: As `gptj_serve.engine.fused.kernels.protocol.Scratch` has it.
        num_rows: How many of its columns count.

    Raises:
        BatchLost, BackendDead: The device failed, here or in work that was started before.
    """

    def __init__(self, chosen_2T: torch.Tensor, num_rows: int) -> None:
        self._download = Download(chosen_2T, WHAT)
        self._num_rows = num_rows

    def results(self) -> list[Sampled]:
        """Wait for the tokens, one a row. Raises what the constructor raises."""
        ids_T, logits_T = self._download.wait().unbind(0)
        is_finite = logits_T.view(torch.float32)[: self._num_rows].isfinite().tolist()
        return [sampled(*one) for one in zip(ids_T[: self._num_rows].tolist(), is_finite, strict=True)]


def is_greedy(row: Row) -> bool:
    """The row's token is the largest logit, and nothing is reported of it."""
    request, sampling = row.request, row.request.sampling
    num_generated = row.end - len(request.prompt_ids)
    holds_back = num_generated < sampling.min_new_tokens and request.eos_token_ids
    return not (sampling.changes_scores or holds_back or request.logprobs or request.num_top_logprobs)
