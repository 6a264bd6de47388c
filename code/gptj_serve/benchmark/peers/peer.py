"""What peers that run in a process of ours have in common."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

OnToken = Callable[[], None]
"""Called when there is one more token."""


class Peer(Protocol):
    """A model that is loaded.

    Attributes:
        facts: For the file of results: ``bytes_per_weight`` and what else matters.
    """

    facts: dict[str, Any]

    def generate(self, prompt_ids: Sequence[int], num_tokens: int, on_token: OnToken | None) -> list[int]:
        """The greedy continuation, of exactly so many tokens whatever the model says of its end.

        Args:
            prompt_ids: The prompt.
            num_tokens: How many to add.
            on_token: Wants to hear of each; None where nobody listens.
        """
        ...
