"""Puts a call's answers together from the engine's events. There is no I/O and no clock here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from gptj_serve.errors import InternalError, Unavailable
from gptj_serve.request import EndEvent, Event, GenerationRequest, Timings, TokenEvent
from gptj_serve.serving.stopping import StopFinder
from gptj_serve.serving.text import Detokenizer, Tokenizer

STOP_SEQUENCE = "stop_sequence"
DEADLINE = "deadline"


class LikelyToken(msgspec.Struct, frozen=True):
    """One of the most likely tokens at a position, chosen or not; the fields are those of `Token`."""

    token_id: int
    text: str
    logprob: float | None
    special: bool


class Token(msgspec.Struct, frozen=True):
    """A generated token as ``details`` reports it.

    Attributes:
        token_id: The token's id.
        text: The token's own text; U+FFFD stands for bytes that are only a part of a character.
        logprob: Its log-probability; None if it was not asked for or is not finite, as JSON has no -inf.
        special: Whether it is a mark (such as the end of text) and not text.
        top: The most likely tokens, the likeliest first.
        start: The character of the generated text at which it begins, or which its first byte is a part of.
    """

    token_id: int
    text: str
    logprob: float | None
    special: bool
    top: tuple[LikelyToken, ...] = ()
    start: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished sequence.

    Attributes:
        text: The generated text up to the stop string, without special tokens unless they were asked for.
        finish_reason: "length", "eos_token", "stop_sequence", or "deadline" for a stream that was cut off.
        num_tokens: How many tokens were generated, up to the one that ended the sequence.
        tokens: Those tokens; empty unless they were asked for.
        mean_logprob: The tokens' mean log-probability; None if log-probabilities were not asked for.
        others: For a prompt's best answer, the candidates that are no answers, the likeliest first.
    """

    text: str = field(repr=False)
    finish_reason: str
    num_tokens: int
    tokens: tuple[Token, ...] = field(repr=False)
    mean_logprob: float | None = None
    others: tuple["Answer", ...] = field(default=(), repr=False)


class Delta(msgspec.Struct, frozen=True):
    """What an event added.

    Attributes:
        index: The number of the sequence in the call.
        text: Text that became final, of this token or of earlier ones; there may be none yet.
        token: The token that came; None if the sequence only ended.
        stop_found: Whether this event completed a stop string, so that the engine need not go on.
        finish_reason: The reason of the end; None unless this event ended the sequence.
    """

    index: int
    text: str
    token: Token | None = None
    stop_found: bool = False
    finish_reason: str | None = None

    def __repr__(self) -> str:
        return f"Delta({self.index}, {self.finish_reason!r})"  # no log shows what was generated


class SequenceAssembler:
    """Turns a sequence's tokens into text, up to its end or a stop string.

    Stop strings are looked for in the text with its special tokens, whether or not the answer shows them,
    up to the token that ends the sequence.

    Args:
        tokenizer: The model's tokenizer.
        stops: Strings that end the answer.
        eos_token_ids: Ids that end the sequence, which are no text, whatever the tokenizer says.
        keep_tokens: Whether `answer` reports every token.
        keep_stop: Whether the answer includes the stop string, or the token that ended it.
        skip_special: Whether the answer has no special tokens. A stop string that is kept is kept whole.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: Sequence[str],
        eos_token_ids: Sequence[int],
        keep_tokens: bool,
        keep_stop: bool = False,
        skip_special: bool = True,
    ) -> None:
        self.finish_reason: str | None = None
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_finder = StopFinder(stops, keep_stop)
        self._eos_token_ids = frozenset(eos_token_ids)
        self._keep_tokens = keep_tokens
        self._keep_stop = keep_stop
        self._skip_special = skip_special
        self._tokens: list[Token] = []
        self._num_tokens = 0
        self._logprobs: list[float] = []
        self._pieces: list[str] = []
        self.last_token: Token | None = None

    @property
    def stop_found(self) -> bool:
        """Whether a stop string ended the answer; what comes after it is ignored."""
        return self.finish_reason == STOP_SEQUENCE

    def push(self, event: TokenEvent) -> str:
        """Take the next token and return the text that became final."""
        if self.finish_reason is not None:
            return ""
        self._num_tokens += 1
        token_id, logprob = event.token_id, event.logprob
        form = self._tokenizer.form(token_id)
        is_end = token_id in self._eos_token_ids
        hidden = (is_end and not self._keep_stop) or (form.special and self._skip_special)
        if hidden:
            # it may come between two parts of a character, which is whole without it
            piece, start = form.text, self._detokenizer.num_chars
        else:
            piece, start = self._detokenizer.push(form)
        top = tuple(map(self._likely, event.top_logprobs)) if event.top_logprobs else ()
        special = is_end or form.special
        self.last_token = Token(token_id, form.text, _finite(logprob), special, top, start)
        if self._keep_tokens:
            self._tokens.append(self.last_token)
        if logprob is not None:
            self._logprobs.append(logprob)
        if is_end:
            # It is the reason of the end and no text, so the text before it begins no stop string.
            text = self._stop_finder.finish() + ("" if hidden else piece)
        else:
            text = self._stop_finder.push(piece, hidden)
            if self._stop_finder.found:
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
        return self.cut(event.reason)

    def cut(self, reason: str) -> str:
        """End the sequence here and return the text that was held back; see `finish`."""
        if self.finish_reason is not None:
            return ""
        self.finish_reason = reason
        text = self._stop_finder.push(self._detokenizer.finish()) + self._stop_finder.finish()
        self._pieces.append(text)
        return text

    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            InternalError: The sequence has not ended.
        """
        if self.finish_reason is None:
            raise InternalError("the engine stopped before every sequence had ended")
        mean_logprob = sum(self._logprobs) / len(self._logprobs) if self._logprobs else None
        return Answer(
            "".join(self._pieces), self.finish_reason, self._num_tokens, tuple(self._tokens), mean_logprob
        )

    def _likely(self, told: tuple[int, float | None]) -> LikelyToken:
        token_id, logprob = told
        form = self._tokenizer.form(token_id)
        special = form.special or token_id in self._eos_token_ids
        return LikelyToken(token_id, form.text, _finite(logprob), special)


def _finite(logprob: float | None) -> float | None:
    return logprob if logprob is not None and math.isfinite(logprob) else None


class Generation:
    """All sequences of a call.

    Args:
        requests: What the engine was asked, in the answer's order.
        assemblers: An assembler for each request.
    """

    def __init__(
        self, requests: Sequence[GenerationRequest], assemblers: Sequence[SequenceAssembler]
    ) -> None:
        self.requests = tuple(requests)
        self._assemblers = tuple(assemblers)
        self._index_by_id = {request.request_id: index for index, request in enumerate(self.requests)}
        self._num_open = len(self._assemblers)
        self._timings: list[Timings] = []

    @property
    def done(self) -> bool:
        """Whether every answer is complete."""
        return not self._num_open

    @property
    def queue_s(self) -> float | None:
        """The longest wait in the engine's queue; None if no end that says so was seen."""
        return max((timings.queue_s for timings in self._timings), default=None)

    def push(self, event: Event) -> Delta:
        """Take the next event.

        Raises:
            ServingError: A sequence failed, and with it the call.
        """
        index = self._index_by_id[event.request_id]
        assembler = self._assemblers[index]
        was_finished = assembler.finish_reason is not None
        token = None
        if isinstance(event, TokenEvent):
            text = assembler.push(event)
            token = None if was_finished else assembler.last_token
        else:
            text = assembler.finish(event)
            self._timings += [event.timings] if event.timings else []
        if was_finished or assembler.finish_reason is None:
            return Delta(index, text, token)
        self._num_open -= 1
        return Delta(index, text, token, assembler.stop_found, assembler.finish_reason)

    def cut(self, reason: str) -> list[Delta]:
        """End every sequence that has not ended, keeping what it has; returns what became final."""
        deltas = []
        for index, assembler in enumerate(self._assemblers):
            if assembler.finish_reason is None:
                deltas.append(Delta(index, assembler.cut(reason), finish_reason=reason))
        self._num_open = 0
        return deltas

    def answers(self) -> tuple[Answer, ...]:
        """Every answer, in the order of the requests.

        Raises:
            InternalError: A sequence has not ended.
        """
        return tuple(assembler.answer() for assembler in self._assemblers)
