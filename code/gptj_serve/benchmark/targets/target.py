"""What is measured: something that answers prompts with an exact number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Query:
    """One request.

    Attributes:
        prompt: Its text.
        num_tokens: How many new tokens, no fewer and no more.
        stream: Tokens are wanted as they come.
    """

    prompt: str
    num_tokens: int
    stream: bool = False


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """What came back; times in seconds.

    Attributes:
        asked_s: When the request was sent, on the monotonic clock.
        seconds: Until the answer was whole.
        status: Of HTTP; 0 if there was no answer.
        token_s: After how long each token came; empty unless it was a stream.
        prompt_tokens, completion_tokens: The server's own usage.
        error: What it said instead.
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
        name: In results.
    """

    name: str

    async def ask(self, ask: Query) -> TimedAnswer:
        """Ask once. Errors are answers, too."""
        ...

    async def close(self) -> None:
        """Give connections back."""
        ...


def document(ask: Query) -> dict[str, Any]:
    """A request in OpenAI's completions schema. An end of text ends nothing."""
    length = {"max_tokens": ask.num_tokens, "ignore_eos": True}
    asked: dict[str, Any] = {"prompt": ask.prompt, **length, "temperature": 0}
    # without counts in every chunk a token whose text is not final yet would have none
    options = {"include_usage": True, "continuous_usage_stats": True}
    return asked | {"stream": True, "stream_options": options} if ask.stream else asked
