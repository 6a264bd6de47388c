"""The protocol of targets, which answer prompts with an exact number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Query:
    """One request.

    Attributes:
        prompt: Text of the prompt.
        num_tokens: How many new tokens are wanted, no fewer and no more.
        stream: The tokens are wanted as they come.
    """

    prompt: str
    num_tokens: int
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """What came back; times are in seconds.

    Attributes:
        asked_s: When the request was sent, on the monotonic clock.
        seconds: Time until the answer was whole.
        status: HTTP status; 0 if there was no answer.
        token_s: When each token came, counted from the request; empty unless it was a stream.
        prompt_tokens, completion_tokens: The usage that the server reports.
        error: What went wrong; None if nothing did.
    """

    asked_s: float
    seconds: float
    status: int
    token_s: Sequence[float] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str | None = None


class Target(Protocol):
    """Answers requests.

    Attributes:
        name: The target's name in results.
    """

    name: str

    async def ask(self, ask: Query) -> TimedAnswer:
        """Make one request. An error is returned as an answer, not raised."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


def document(ask: Query) -> dict[str, Any]:
    """A request in OpenAI's completions schema that no end of text ends."""
    length = {"max_tokens": ask.num_tokens, "ignore_eos": True}
    asked: dict[str, Any] = {"prompt": ask.prompt, **length, "temperature": 0}
    # with counts in every chunk, a token whose text is not final yet has a chunk of its own, too
    options = {"include_usage": True, "continuous_usage_stats": True}
    return asked | {"stream": True, "stream_options": options} if ask.stream else asked
