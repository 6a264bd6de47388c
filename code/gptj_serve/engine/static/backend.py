"""The protocol that every backend meets: a batch of token ids in, next-token logits out.

A backend holds the weights and the KV cache of one static batch at a time. It knows nothing of
requests, sampling or time: the scheduler decides what runs, the sampler chooses tokens.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from gptj_serve.engine.scheduler import Limits


class Backend(Protocol):
    """One loaded model that runs one static batch at a time.

    Order of calls: ``prefill``, then ``decode`` any number of times, then ``reset``; a new
    ``prefill`` without a ``reset`` is an error. Rows keep their order. Calls raise `ValueError`
    when a limit would be passed (nothing has run then), `BatchLost` or `BackendDead` otherwise.
    """

    name: str
    limits: Limits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Start a batch.

        Args:
            prompts: One list of token ids a row, each at least one long.

        Returns:
            logits_BV, float, on the backend's device: each row's next-token logits. Valid until
            the next call.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Append one token to every row of the running batch and return logits_BV as `prefill` does.

        Args:
            token_ids: One id a row. Rows whose sequence has ended get any valid id.
        """
        ...

    def reset(self) -> None:
        """Forget the running batch. Nothing of it can reach a later one."""
        ...
