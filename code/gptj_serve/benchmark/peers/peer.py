"""The protocol of peers that run in a process of ours."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

OnToken = Callable[[], None]
"""A function that is called when there is one more token."""


class Peer(Protocol):
    """A model that a peer has loaded.

    Attributes:
        facts: What the file of results says of it: ``bytes_per_weight`` and what else matters.
    """

    facts: dict[str, Any]

    def generate(self, prompt_ids: Sequence[int], num_tokens: int, on_token: OnToken | None) -> list[int]:
        """Generate the greedy continuation, without stopping at an end of text.

        Args:
            prompt_ids: The prompt.
            num_tokens: Exactly how many tokens to generate.
            on_token: Called for each of them; None where nobody listens.
        """
        ...
