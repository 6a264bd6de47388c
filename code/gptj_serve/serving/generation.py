"""Puts one call's answers together from the engine's events. No I/O, no clock."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptj_serve.errors import InternalError, Unavailable
from gptj_serve.request import EndEvent, GenerationRequest, Timings, TokenEvent
from gptj_serve.serving.stopping import StopFinder
from gptj_serve.serving.text import Detokenizer, Tokenizer

STOP_SEQUENCE = "stop_sequence"


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token as ``details`` reports it."""

    token_id: int
    text: str
    logprob: float | None
    special: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished sequence.

    Attributes:
        text: What was generated, without special tokens and without the stop string and what follows.
        finish_reason: "length", "eos_token" or "stop_sequence".
        num_tokens: Tokens generated, up to the one that ended the sequence.
        tokens: Those tokens; empty unless they were asked for.
    """

    text: str = field(repr=False)
    finish_reason: str
    num_tokens: int
    tokens: tuple[Token, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Delta:
    """What one event added.

    Attributes:
        index: Which sequence of the call.
        text: Text that became final.
        stop_found: This event completed a stop string: the engine need not go on.
        finish_reason: Set once, by the event that ended the sequence.
    """

    index: int
    text: str = field(repr=False)
    stop_found: bool = False
    finish_reason: str | None = None


class SequenceAssembler:
    """Turns one sequence's tokens into text, up to its end or a stop string.

    Args:
        tokenizer: The model's.
        stops: Strings that end the answer.
        eos_token_ids: Ids that are not text, whatever the tokenizer says.
        keep_tokens: Whether `answer` reports every token.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Sequence[str], eos_token_ids: Sequence[int], keep_tokens: bool
    ) -> None:
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_finder = StopFinder(stops)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._keep_tokens = keep_tokens
        self._tokens: list[Token] = []
        self._num_tokens = 0
        self._pieces: list[str] = []

    @property
    def stop_found(self) -> bool:
        """Whether a stop string ended the answer; what comes after it is ignored."""
        return self._stop_finder.found

    def push(self, event: TokenEvent) -> str:
        """Take the next token and return the text that became final."""
        if self.finish_reason is not None:
            return ""
        special = event.token_id in self._eos_token_ids or self._tokenizer.is_special(event.token_id)
        self._num_tokens += 1
        if self._keep_tokens:
            self._tokens.append(self._token(event, special))
        text = "" if special else self._stop_finder.push(self._detokenizer.push(event.token_id))
        if self.stop_found:
            self.finish_reason = STOP_SEQUENCE
        self._pieces.append(text)
        return text

    def finish(self, event: EndEvent) -> str:
        """Take the end and return the text that was held back for a stop string that did not come.

        Raises:
            ServingError: The sequence failed or was cancelled.
        """
        if self.finish_reason is not None:
            return ""
        if event.reason == "failed":
            raise event.error or InternalError("generation failed")
        if event.reason == "cancelled":
            raise Unavailable("generation was cancelled: the service is shutting down")
        self.finish_reason = event.reason
        text = self._stop_finder.finish()
        self._pieces.append(text)
        return text

    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            InternalError: The sequence has not ended.
        """
        if self.finish_reason is None:
            raise InternalError("the engine stopped before every sequence had ended")
        return Answer("".join(self._pieces), self.finish_reason, self._num_tokens, tuple(self._tokens))

    def _token(self, event: TokenEvent, special: bool) -> Token:
        # JSON has no -inf
        logprob = event.logprob if event.logprob is not None and math.isfinite(event.logprob) else None
        return Token(event.token_id, self._tokenizer.token_text(event.token_id), logprob, special)


class Generation:
    """All sequences of one call.

    Args:
        requests: What the engine was asked, in the answer's order.
        assemblers: One for each request.
    """

    def __init__(
        self, requests: Sequence[GenerationRequest], assemblers: Sequence[SequenceAssembler]
    ) -> None:
        self.requests = tuple(requests)
        self._assemblers = tuple(assemblers)
        self._index_by_id = {request.request_id: index for index, request in enumerate(self.requests)}
        self._timings: list[Timings] = []

    @property
    def done(self) -> bool:
        """Whether every answer is complete."""
        return all(assembler.finish_reason is not None for assembler in self._assemblers)

    @property
    def queue_s(self) -> float | None:
        """The longest wait in the engine's queue; None if no end that says so was seen."""
        return max((timings.queue_s for timings in self._timings), default=None)

    def push(self, event: TokenEvent | EndEvent) -> Delta:
        """Take the next event.

        Raises:
            ServingError: A sequence failed, and with it the call.
        """
        index = self._index_by_id[event.request_id]
        assembler = self._assemblers[index]
        was_finished = assembler.finish_reason is not None
        if isinstance(event, TokenEvent):
            text = assembler.push(event)
        else:
            text = assembler.finish(event)
            self._timings += [event.timings] if event.timings else []
        if was_finished or assembler.finish_reason is None:
            return Delta(index, text)
        return Delta(index, text, assembler.stop_found, assembler.finish_reason)

    def answers(self) -> tuple[Answer, ...]:
        """Every answer, in the order of the requests.

        Raises:
            InternalError: A sequence has not ended.
        """
        return tuple(assembler.answer() for assembler in self._assemblers)
