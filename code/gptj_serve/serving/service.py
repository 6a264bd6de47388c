"""The service without HTTP: parses a body, runs it in the engine, and renders the answer.

The three stages are those of sagemaker-inference's ``input_fn``, ``predict_fn`` and ``output_fn``. A front
with its own event loop uses `Service.start` in place of `Service.run`.
"""

import logging
import secrets
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

from gptj_serve.errors import (
    BadRequest,
    DeadlinePassed,
    InternalError,
    Overloaded,
    ServingError,
    release_frames,
)
from gptj_serve.logs import log_event
from gptj_serve.request import GenerationRequest, IdLists, ModelInfo, TokenEvent
from gptj_serve.serving import body, schemas
from gptj_serve.serving.call import Ask, Call, Prompt
from gptj_serve.serving.client import EngineClient
from gptj_serve.serving.generation import Answer, Generation, SequenceAssembler
from gptj_serve.serving.parameters import Parameters, too_long
from gptj_serve.serving.schemas.field_checks import check_text
from gptj_serve.serving.schemas.schema import Schema
from gptj_serve.serving.templates.client import NO_TEMPLATE, Renderer
from gptj_serve.serving.text import Tokenizer

logger = logging.getLogger(__name__)

MAX_SEQUENCES = 1024
"""How many sequences a call may have, however long the queue is."""

Read = Callable[[bytes, str | None, int], Ask]
"""Reads a body, given its bytes, its content type, and how many bytes it may have."""


class KnowsEngine(Protocol):
    """What the service needs of a connection to the engine, except for `Service.run`."""

    @property
    def info(self) -> ModelInfo:
        """What runs in the engine; raises `ServingError` if the engine is gone."""
        ...


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a call.

    Attributes:
        request_id: The call's id.
        answers: The answers, all of the first prompt first.
        queue_s: The longest wait in the engine's queue; None if stop strings ended every sequence.
        first_token_s: Seconds from arrival to the first token.
        total_s: Seconds from arrival to the last token.
        num_generated_tokens: How many tokens all sequences have, also those that ``best_of`` did not choose.
    """

    request_id: str
    answers: tuple[Answer, ...]
    queue_s: float | None
    first_token_s: float | None
    total_s: float = 0.0
    num_generated_tokens: int = 0

    @property
    def time_per_token_s(self) -> float | None:
        """Seconds between the tokens of the longest answer; None if it has one or the time is not known."""
        longest = max((answer.num_tokens for answer in self.answers), default=0)
        if self.first_token_s is None or longest < 2:
            return None
        return (self.total_s - self.first_token_s) / (longest - 1)


class ErrorAnswer(NamedTuple):
    """An error as an HTTP answer."""

    status: int
    body: bytes
    content_type: str
    headers: dict[str, str]


class Service:
    """Turns requests' bodies into answers.

    Args:
        client: The engine; an `EngineClient` if `run` is to be called.
        tokenizer: The model's tokenizer.
        max_payload_bytes: Size of the largest body.
        request_timeout_s: How many seconds a request has from arrival to answer.
        streaming: Whether the front can send tokens as they come.
        max_queue: How many sequences may wait in the engine; a call may have as many, and a batch more.
        clock: A monotonic clock, in seconds.
        template: Makes prompts from messages for `parse`; None if the model cannot chat.

    Attributes:
        max_payload_bytes: Size of the largest body.
    """

    def __init__(
        self,
        client: KnowsEngine,
        tokenizer: Tokenizer,
        max_payload_bytes: int,
        request_timeout_s: float,
        streaming: bool = False,
        max_queue: int = MAX_SEQUENCES,
        clock: Callable[[], float] = time.monotonic,
        template: Renderer | None = None,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self.max_payload_bytes = max_payload_bytes
        self.request_timeout_s = request_timeout_s
        self._streaming = streaming
        self._max_queue = max_queue
        self._clock = clock
        self._template = template

    def parse(
        self,
        data: bytes,
        content_type: str | None,
        accept: str | None = None,
        read: Read = schemas.read,
        arrived_s: float | None = None,
    ) -> Call:
        """Read and check a body; nothing has reached the engine yet.

        Args:
            data: The body.
            content_type: Its ``Content-Type``; None means JSON.
            accept: The ``Accept`` header.
            read: Reads it, in whatever schemas are possible.
            arrived_s: When the request came, on the service's clock; None means now.

        Raises:
            ServingError: The body is wrong (400, 413, 415), or the engine is gone (503).
        """
        arrived_s = self._clock() if arrived_s is None else arrived_s
        ask = read(data, content_type, self.max_payload_bytes)
        if ask.messages is not None:
            if self._template is None:
                raise BadRequest(NO_TEMPLATE)
            ask = ask.with_prompt(self._template.render(ask.messages))
        return self.check(ask, arrived_s, accept)

    def check(self, ask: Ask, arrived_s: float, accept: str | None = None) -> Call:
        """Check what a body says against the model; nothing has reached the engine yet.

        Args:
            ask: What the body says, with a prompt in place of messages.
            arrived_s: When the request came, on the service's clock.
            accept: The ``Accept`` header.

        Raises:
            ServingError: The status is 400, or 503 if the engine is gone.
        """
        if ask.stream and not self._streaming:
            raise BadRequest("stream=true: must be false here; GPTJ_FRONT=http is the setting that streams")
        info = self.info
        ask = replace(ask, parameters=ask.parameters.with_defaults(info))
        ask.parameters.check_against(info, ask.parameters_field)
        self._check_num_sequences(ask, info)
        bad_words = self._bad_words(ask.parameters.bad_words)
        prompts = [
            self._prompt(text, ask, info, ask.prompt_name(index), bad_words)
            for index, text in enumerate(ask.texts)
        ]
        return Call(
            ask=ask,
            prompts=tuple(prompts),
            eos_token_ids=ask.parameters.eos_of(info),
            accept=accept,
            arrived_s=arrived_s,
            model=info.model_name,
        )

    @property
    def info(self) -> ModelInfo:
        """What runs in the engine, where the tokenizer's end of text ends sequences, too.

        Raises:
            ServingError: The engine is gone.
        """
        info = self._client.info
        own = self._tokenizer.eos_token_id
        if own is None or own >= info.vocab_size or own in info.eos_token_ids:
            return info
        return replace(info, eos_token_ids=(*info.eos_token_ids, own))

    def start(self, call: Call, request_id: str, limit_s: float | None = None) -> Generation:
        """The requests for the engine, and the generation that takes its events.

        Args:
            call: A parsed body.
            request_id: Unique among the calls that run on one engine connection.
            limit_s: How many seconds the call has from arrival to answer; None is the service's own limit.

        Raises:
            DeadlinePassed: No time is left.
        """
        limit_s = self.request_timeout_s if limit_s is None else limit_s
        timeout_s = limit_s - (self._clock() - call.arrived_s)
        if timeout_s <= 0:
            raise DeadlinePassed(f"no answer within {limit_s:g} s")
        requests = tuple(call.requests(request_id, timeout_s))
        return Generation(requests, [self._assembler(request, call.parameters) for request in requests])

    def run(self, call: Call, request_id: str) -> Result:
        """Generate all of a call's answers; the first failure fails the call and cancels the rest.

        Args:
            call: A parsed body.
            request_id: Unique among the calls that run on one engine connection.

        Raises:
            ServingError: The engine refused, failed or is gone.
        """
        generation = self.start(call, request_id)
        first_token_s = None
        client = cast(EngineClient, self._client)
        events = client.generate(generation.requests)
        try:
            for event in events:
                if first_token_s is None and isinstance(event, TokenEvent):
                    first_token_s = self._clock() - call.arrived_s
                if generation.push(event).stop_found:
                    client.abort(event.request_id)
                if generation.done:
                    # the end of an aborted sequence need not be waited for
                    break
        finally:
            if isinstance(events, Generator):
                events.close()
        return self.result(call, request_id, generation, first_token_s)

    def result(
        self, call: Call, request_id: str, generation: Generation, first_token_s: float | None
    ) -> Result:
        """The result of a call whose sequences have all ended now.

        Args:
            call: The parsed body.
            request_id: The id given to `start`.
            generation: The generation from `start`, which has got all events.
            first_token_s: Seconds from arrival to the first token.
        """
        candidates = generation.answers()
        return Result(
            request_id=request_id,
            answers=call.choose(candidates),
            queue_s=generation.queue_s,
            first_token_s=first_token_s,
            total_s=self._clock() - call.arrived_s,
            num_generated_tokens=sum(answer.num_tokens for answer in candidates),
        )

    def now_s(self, call: Call) -> float:
        """Seconds since a call arrived."""
        return self._clock() - call.arrived_s

    def render(self, call: Call, result: Result) -> tuple[bytes, str]:
        """The answer's body and content type, in the client's schema; the request is logged."""
        rendered = schemas.render(call, result.answers, result.request_id, result.num_generated_tokens)
        self.log(call, result)
        return rendered

    def log(self, call: Call, result: Result) -> None:
        """Log a request that was answered."""
        _log(
            call,
            self._clock(),
            request_id=result.request_id,
            status=200,
            generated_tokens=result.num_generated_tokens,
            queue_s=result.queue_s,
            first_token_s=result.first_token_s,
            finish_reasons=[answer.finish_reason for answer in result.answers],
        )

    def render_error(
        self,
        error: BaseException,
        request_id: str,
        call: Call | None = None,
        schema: Schema = schemas.TGI,
        is_logged: bool = True,
    ) -> ErrorAnswer:
        """Call `render_error` with the service's clock."""
        return render_error(error, request_id, call, self._clock, schema, is_logged)

    def _assembler(self, request: GenerationRequest, parameters: Parameters) -> SequenceAssembler:
        return SequenceAssembler(
            self._tokenizer,
            parameters.stop,
            request.eos_token_ids,
            keep_tokens=parameters.details,
            keep_stop=parameters.include_stop_str_in_output,
            skip_special=parameters.skip_special_tokens,
        )

    def _check_num_sequences(self, ask: Ask, info: ModelInfo) -> None:
        each = ask.parameters.num_candidates
        num_sequences = len(ask.texts) * each
        most = min(MAX_SEQUENCES, info.max_batch_size + self._max_queue)
        if num_sequences > most:
            name = "best_of" if ask.parameters.best_of else "num_return_sequences"
            name = ask.parameters.names.get(name, name)
            raise BadRequest(
                f"{ask.prompts_field}: {len(ask.texts)} prompts with {name}={each} make"
                f" {num_sequences} sequences;"
                f" one request has at most {most}, a batch and the queue"
            )

    def _bad_words(self, words: Sequence[str]) -> IdLists:
        """The ids of words that must not be generated, at the beginning of a text and inside it."""
        encode = partial(self._tokenizer.encode, add_special_tokens=False)
        bare = [word.lstrip() or word for word in words]
        # with the space before it a word has other tokens, or begins with a token of its own for the space
        found = [ids for word in bare for ids in (encode(word), encode(f" {word}"))]
        return tuple(ids for ids in dict.fromkeys(found) if ids)

    def _prompt(
        self, given: str | tuple[int, ...], ask: Ask, info: ModelInfo, where: str, bad_words: IdLists
    ) -> Prompt:
        seed = ask.parameters.seed
        if seed is None:
            # each prompt has its own seed, so that equal prompts differ. A double holds it exactly, so that
            # JavaScript clients can send the reported seed back
            seed = secrets.randbits(53)
        if isinstance(given, str):
            text, token_ids = given, self._encode(given, ask, info, where)
        else:
            _check_ids(given, info, where)
            text, token_ids = self._tokenizer.decode(given), given
        if ask.parameters.truncate is not None:
            token_ids = token_ids[-ask.parameters.truncate :]
        sampling = ask.parameters.sampling(len(token_ids), info, seed, where, bad_words)
        return Prompt(text, token_ids, sampling)

    def _encode(self, text: str, ask: Ask, info: ModelInfo, where: str) -> tuple[int, ...]:
        if not text:
            raise BadRequest(f"{where}: is empty; must have at least one character")
        truncate = ask.parameters.truncate
        try:
            check_text(text)
            # tokenising megabytes takes seconds and a GB, and would only show by how much it is too long
            num_tokens = self._tokenizer.min_num_tokens(text) if truncate is None else 0
            if num_tokens < info.max_context:
                token_ids = self._tokenizer.encode_tail(
                    text, min(truncate or info.max_context, info.max_context), ask.adds_special_tokens
                )
                num_tokens = len(token_ids)
        except ValueError as error:
            raise BadRequest(f"{where}: {error}") from None
        if num_tokens >= info.max_context and (truncate is None or truncate >= info.max_context):
            max_new_tokens = ask.parameters.max_new_tokens or 1
            too_many = f"at least {num_tokens}"
            raise too_long(where, too_many, max_new_tokens, info.max_context, ask.parameters.names)
        _check_ids(token_ids, info, where)
        return token_ids


def _check_ids(token_ids: Sequence[int], info: ModelInfo, where: str) -> None:
    if not token_ids:
        raise BadRequest(f"{where}: has no tokens")
    if max(token_ids) >= info.vocab_size:
        raise BadRequest(
            f"{where}: has token id {max(token_ids)}, and the model knows ids below {info.vocab_size}"
        )


def render_error(
    error: BaseException,
    request_id: str,
    call: Call | None = None,
    clock: Callable[[], float] = time.monotonic,
    schema: Schema = schemas.TGI,
    is_logged: bool = True,
) -> ErrorAnswer:
    """The answer for an error; the request is logged. Anything but a `ServingError` is a 500 without details.

    What the error's traceback holds is released, as it has been logged or nobody wants it.

    Args:
        error: What `Service.parse`, `Service.run` or `Service.render` raised.
        request_id: The call's id.
        call: The parsed body, if it was parsed.
        clock: The service's clock.
        schema: The schema that the client seems to speak, if the body was not parsed.
        is_logged: Whether the request gets its record.
    """
    cause = error
    if not isinstance(error, ServingError):
        log_unexpected(error, request_id)
        error = InternalError("internal error")
    release_frames(cause)
    if is_logged:
        _log(call, clock(), request_id=request_id, status=error.status, error_type=error.kind)
    retry_after_s = error.retry_after_s
    if retry_after_s is None and isinstance(error, Overloaded):
        retry_after_s = 1
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    schema = schemas.of(call.ask.schema) if call else schema
    document = schema.error(error, request_id)
    return ErrorAnswer(error.status, body.compact(document), body.JSON, headers)


def _log(call: Call | None, now_s: float, **fields: Any) -> None:
    if call is not None:
        fields.update(
            schema=call.ask.schema,
            prompt_tokens=call.num_prompt_tokens,
            num_sequences=call.num_sequences,
            total_s=now_s - call.arrived_s,
        )
    known: dict[str, Any] = {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in fields.items()
        if value is not None
    }
    log_event(logger, "request", "request", **known)


def log_unexpected(error: BaseException, request_id: str) -> None:
    """Log what was not foreseen, without its message."""
    # an exception's message may quote a prompt, but where it was raised may be told
    log_event(
        logger,
        "unexpected_error",
        "unexpected error",
        level=logging.ERROR,
        request_id=request_id,
        exception=type(error).__name__,
        traceback="".join(traceback.format_tb(error.__traceback__)),
    )
