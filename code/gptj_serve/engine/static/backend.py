"""The protocol that every backend meets: a batch of token ids in, next-token logits out.

A backend holds the weights and the KV cache of one static batch at a time. It knows nothing of
requests, sampling or time: the scheduler decides what runs, the sampler chooses tokens.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from gptj_serve.engine.scheduler import Limits


class Backend(Protocol):
    """A loaded model that runs one static batch at a time.

    ``prefill`` is called first, then ``decode`` any number of times, then ``reset``; a new ``prefill``
    without a ``reset`` is an error. Rows keep their order. Calls raise `ValueError` if a limit would be
    exceeded (then nothing has run), and `BatchLost` or `BackendDead` otherwise.
    """

    name: str
    limits: Limits

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Start a batch.

        Args:
            prompts: A list of token ids for each row, each at least one long.

        Returns:
            logits_BV, float, on the backend's device: each row's next-token logits. Valid until
            the next call.
        """
        ...

    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Append one token to every row of the running batch and return logits_BV as `prefill` does.

        Args:
            token_ids: An id for each row. Rows whose sequence has ended get any valid id.
        """
        ...

    def reset(self) -> None:
        """Forget the running batch, so that nothing of it can reach a later one."""
        ...
