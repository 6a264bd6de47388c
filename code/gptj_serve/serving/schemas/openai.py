"""OpenAI's completions: ``{"prompt": ..., "max_tokens": ...}``; its chat schema shares most of it."""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gptj_serve.errors import BadRequest, ServingError
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer, Delta, Token
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.schemas import openai_fields, openai_logprobs
from gptj_serve.serving.schemas.common_fields import COMMON, EVERYWHERE, NEW_TOKENS, read_best_of
from gptj_serve.serving.schemas.field_checks import (
    Check,
    boolean,
    checked_elsewhere,
    integer,
    number,
    object_schema,
    only,
    read_fields,
    shown,
    stops,
    string,
    temperature,
)
from gptj_serve.serving.schemas.schema import EventTemplate, Schema, StreamRenderer, server_sent_event

DEFAULT_MAX_TOKENS = 16
MAX_ANSWERS = 128
MAX_BIASES = 1000

_OUR_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "ignore_eos": "ignore_eos",
    "n": "num_return_sequences",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
    "stop": "stop",
    "include_stop_str_in_output": "include_stop_str_in_output",
    "skip_special_tokens": "skip_special_tokens",
    **{name: name for name in EVERYWHERE},
}
_NAMES = {ours: theirs for theirs, ours in _OUR_NAMES.items() if theirs != ours}


def _max_tokens(value: Any) -> Any:
    if type(value) is int and value == 0:
        raise ValueError(
            "must be at least 1; prompts are not scored here, so there would be nothing to answer"
        )
    return NEW_TOKENS.read(value)


max_tokens = Check(_max_tokens, NEW_TOKENS.schema)
"""Check for a number of new tokens."""


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise ValueError(f"must be an object of at most {MAX_BIASES} token ids and their biases")
    check = number(-100, 100)
    biases = []
    for name, bias in value.items():
        if not (name.isascii() and name.isdigit() and len(name) <= 10 and name == str(int(name))):
            raise ValueError(f"{shown(name)} is no token id; must be a whole number in quotes")
        try:
            biases.append((int(name), check.read(bias)))
        except ValueError as error:
            raise ValueError(f"the bias of token {name} {error}, not {shown(bias)}") from None
    return tuple(biases)


_BIASES = {
    "type": "object",
    "maxProperties": MAX_BIASES,
    "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}
_STREAM_OPTIONS: Mapping[str, Check] = {
    "include_usage": boolean,
    "include_obfuscation": only(False),
    # this is vLLM's, and load generators ask for it
    "continuous_usage_stats": boolean,
}

SHARED: Mapping[str, Check] = {
    "model": string,
    "max_tokens": max_tokens,
    "temperature": temperature(2),
    "n": integer(1, MAX_ANSWERS),
    "stop": stops,
    "stream": boolean,
    "stream_options": checked_elsewhere(object_schema(_STREAM_OPTIONS)),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": Check(_logit_bias, _BIASES),
    **openai_fields.NO_EFFECT,
    # these are not OpenAI's, but common among servers that speak its schema
    "min_tokens": COMMON["min_new_tokens"],
    "ignore_eos": boolean,
    "add_special_tokens": boolean,
    "include_stop_str_in_output": boolean,
    "skip_special_tokens": boolean,
    **EVERYWHERE,
}
"""The fields that completions and chat have in common."""

_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPTS = {"anyOf": [_TEXT, _IDS, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}, "minItems": 1}]}

_CHECKS: Mapping[str, Check] = {
    **SHARED,
    "prompt": checked_elsewhere(_PROMPTS),
    "best_of": integer(1, MAX_ANSWERS),
    "logprobs": integer(0, 5),
    "echo": boolean,
    "suffix": only(""),
    **openai_fields.NOT_SERVED,
}

REQUEST = object_schema(_CHECKS, required=["prompt"])
"""The JSON Schema of the bodies that `read` reads."""

_ELSEWHERE = {"parameters": "is none of OpenAI's fields; what is in it belongs beside prompt"}


def read(document: Any) -> Ask:
    """Read a body.

    Raises:
        BadRequest: A field is missing, unknown or wrong.
    """
    fields = read_fields(document, _CHECKS, "body", _ELSEWHERE)
    texts, is_list = _read_prompts(fields.get("prompt"))
    if fields.get("echo") and "logprobs" in fields:
        raise BadRequest(
            "body.echo=true: cannot be combined with logprobs, because the prompt's are not computed;"
            " send one of them"
        )
    return Ask(
        schema=Completions.name,
        texts=texts,
        is_list=is_list,
        prompts_field="prompt",
        parameters_field="body",
        parameters=to_parameters(
            {"max_tokens": DEFAULT_MAX_TOKENS, **fields},
            best_of=_best_of(fields),
            return_full_text=fields.get("echo", False),
            details="logprobs" in fields,
            num_top_logprobs=fields.get("logprobs", 0),
        ),
        stream=fields.get("stream", False),
        adds_special_tokens=fields.get("add_special_tokens", True),
    )


def to_parameters(fields: Mapping[str, Any], **own: Any) -> Parameters:
    """The parameters that the checked fields of completions or chat ask for.

    Args:
        fields: The fields of `SHARED`, and others, which are ignored.
        own: The parameters that the schema makes of its other fields.

    Raises:
        BadRequest: Fields contradict each other.
    """
    samples = fields.get("temperature", 1.0) > 0
    if fields.get("n", 1) > 1 and not samples:
        raise BadRequest(
            f"body.n={fields['n']}: must be 1 with temperature 0 (all answers would be the same)"
        )
    if "stream_options" in fields and not fields.get("stream"):
        raise BadRequest("body.stream_options: is for streams only; leave it out or send stream=true")
    options = read_fields(fields.get("stream_options"), _STREAM_OPTIONS, "body.stream_options")
    known = {ours: fields[theirs] for theirs, ours in _OUR_NAMES.items() if theirs in fields}
    include_usage = options.get("include_usage", False)
    return Parameters(
        **{"top_k": 0, **known, **own},
        do_sample=samples,
        temperature=fields.get("temperature", 1.0) if samples else 1.0,
        include_usage=include_usage,
        continuous_usage=include_usage and options.get("continuous_usage_stats", False),
        given=frozenset(known),
        names=_NAMES,
    )


class Completions(Schema):
    """OpenAI's completions.

    Attributes:
        id_prefix: The beginning of answers' ids.
        whole: An answer's ``object``.
        chunk: The ``object`` of a stream's chunks.
    """

    name = "openai"
    id_prefix = "cmpl"
    whole = "text_completion"
    chunk = "text_completion"

    def render(
        self, call: Call, answers: Sequence[Answer], request_id: str, num_generated: int | None
    ) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index, answer in enumerate(answers):
            logprobs = None
            if call.parameters.details:
                logprobs = self.logprobs(call, openai_logprobs.of_answer(answer.tokens, answer.text))
            content = self.content(call, index, answer)
            choices.append(choice(index, content, logprobs, answer.finish_reason))
        head = self.head(call, request_id, self.whole)
        return {**head, "choices": choices, "usage": usage(call, answers, num_generated)}

    def stream(self, call: Call, request_id: str) -> StreamRenderer:
        """Chunks of what each token added."""
        return ChunkStream(self, call, request_id)

    def error(self, error: ServingError, request_id: str) -> dict[str, Any]:
        """An error as OpenAI's clients read it."""
        kind = "invalid_request_error" if 400 <= error.status < 500 else "server_error"
        if error.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {
                "message": error.message,
                "type": kind,
                "param": None,
                "code": error.code or error.kind,
                "request_id": request_id,
            }
        }

    def head(self, call: Call, request_id: str, kind: str) -> dict[str, Any]:
        """The fields with which an answer and each chunk of a stream begin; ``kind`` is their ``object``."""
        call_id = f"{self.id_prefix}-{request_id}"
        return {"id": call_id, "object": kind, "created": int(time.time()), "model": call.model}

    def logprobs(self, call: Call, tokens: Sequence[Token]) -> dict[str, Any]:
        """The ``logprobs`` of a choice."""
        return openai_logprobs.for_completions(tokens, call.parameters.num_top_logprobs)

    def content(self, call: Call, index: int, answer: Answer) -> dict[str, Any]:
        """What the choice of a whole answer has as its text."""
        return {"text": _echo(call, index) + answer.text}

    def piece(self, text: str) -> dict[str, Any]:
        """What the choice of a chunk has as its text."""
        return {"text": text}

    def chunk_choices(
        self, call: Call, delta: Delta, is_first: bool, logprobs: dict[str, Any] | None
    ) -> Iterator[dict[str, Any]]:
        """The choices for an event, each in a chunk of its own.

        Args:
            call: What was asked.
            delta: What the event added.
            is_first: Whether it is the first event of its sequence.
            logprobs: Log-probabilities of the tokens whose text became final with it.
        """
        if is_first and call.parameters.return_full_text:
            yield choice(delta.index, self.piece(_echo(call, delta.index)))
        if delta.text or delta.finish_reason:
            yield choice(delta.index, self.piece(delta.text), logprobs, delta.finish_reason)


def finish_reason(reason: str | None) -> str | None:
    """OpenAI's word for the end of a sequence, which is the same for an end of text and a stop string."""
    return "stop" if reason in ("eos_token", "stop_sequence") else reason


def choice(
    index: int, content: Mapping[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    """A choice of an answer or of a chunk; ``reason`` is ours for the end of its sequence."""
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason(reason)}


def usage(call: Call, answers: Sequence[Answer], num_generated: int | None = None) -> dict[str, int]:
    """The counts of tokens; for ``num_generated`` see `render`."""
    if num_generated is None:
        num_generated = sum(answer.num_tokens for answer in answers)
    return {
        "prompt_tokens": call.num_prompt_tokens,
        "completion_tokens": num_generated,
        "total_tokens": call.num_prompt_tokens + num_generated,
    }


class SequenceState:
    """How far one sequence of a stream has come.

    A token is kept until its text is final, so that no token of a stop string is ever sent.
    """

    def __init__(self) -> None:
        self.was_opened = False
        self._num_chars = 0
        self._waiting: deque[Token] = deque()

    def push(self, delta: Delta) -> list[Token]:
        """The tokens to send with this event: those whose text became final, if it has a chunk at all."""
        if delta.token is not None:
            self._waiting.append(delta.token)
        self._num_chars += len(delta.text)
        told: list[Token] = []
        if delta.text or delta.finish_reason is not None:
            while self._waiting and self._waiting[0].start < self._num_chars:
                told.append(self._waiting.popleft())
        return told


class ChunkStream:
    """The streams of completions and of chat; see `StreamRenderer`.

    Args:
        schema: Makes the choices.
        call: What was asked.
        request_id: The call's id.
    """

    def __init__(self, schema: Completions, call: Call, request_id: str) -> None:
        self._schema = schema
        self._call = call
        self._head = schema.head(call, request_id, schema.chunk)
        self._sequences = [SequenceState() for _ in range(call.num_sequences)]
        self._num_generated = 0
        self._is_plain = not (call.parameters.details or call.parameters.continuous_usage)
        self._templates = [
            EventTemplate(partial(self._text_chunk, index)) for index in range(call.num_sequences)
        ]

    def delta(self, delta: Delta) -> bytes:
        """Chunks for what one event added."""
        sequence = self._sequences[delta.index]
        if self._is_plain and sequence.was_opened and delta.finish_reason is None:
            # most chunks of most streams: nothing but their text is new
            return self._templates[delta.index].event(delta.text) if delta.text else b""
        is_first, sequence.was_opened = not sequence.was_opened, True
        tokens = sequence.push(delta)
        has_logprobs = self._call.parameters.details and tokens
        logprobs = self._schema.logprobs(self._call, tokens) if has_logprobs else None
        choices = list(self._schema.chunk_choices(self._call, delta, is_first, logprobs))
        counts = None
        if self._call.parameters.continuous_usage:
            self._num_generated += delta.token is not None
            counts = usage(self._call, (), self._num_generated)
            choices = choices or [choice(delta.index, self._schema.piece(""))]
        return b"".join(self._chunk([one], counts) for one in choices)

    def end(self, answers: tuple[Answer, ...]) -> bytes:
        """The counts of tokens, if they were asked for, and the end."""
        last = b""
        if self._call.parameters.include_usage:
            last = self._chunk([], usage(self._call, answers))
        return last + b"data: [DONE]\n\n"

    def _text_chunk(self, index: int, text: str) -> bytes:
        return self._chunk([choice(index, self._schema.piece(text))])

    def _chunk(self, choices: list[dict[str, Any]], counts: dict[str, int] | None = None) -> bytes:
        # a client that asked for the counts finds the field in every chunk
        last = {"usage": counts} if self._call.parameters.include_usage else {}
        return server_sent_event({**self._head, "choices": choices, **last})


def _echo(call: Call, index: int) -> str:
    """The prompt of an answer, where the client wants it before the text."""
    prompt = call.prompts[index // call.parameters.num_return_sequences]
    return prompt.text if call.parameters.return_full_text else ""


def _best_of(fields: Mapping[str, Any]) -> int | None:
    best_of = read_best_of(fields, "body", "n")
    if best_of is not None and fields.get("stream"):
        raise BadRequest(
            f"body.best_of={best_of}: must be n, which is {fields.get('n', 1)}, with stream=true"
            " (the best is known last)"
        )
    if best_of is not None and fields.get("temperature") == 0:
        raise BadRequest(
            f"body.best_of={best_of}: must be 1 with temperature 0 (all answers would be the same)"
        )
    return best_of


def _read_prompts(value: Any) -> tuple[tuple[str | tuple[int, ...], ...], bool]:
    """The prompts, and whether they were a list; a list of token ids is one prompt."""
    if value is None:
        raise BadRequest("prompt: is missing; must be a string, a list of strings, or token ids")
    if isinstance(value, list) and value and type(value[0]) is not int:
        allowed = "a string or a list of token ids"
        return tuple(_read_prompt(one, f"prompt[{i}]", allowed) for i, one in enumerate(value)), True
    return (_read_prompt(value, "prompt", "a string, a list of strings, or token ids"),), False


def _read_prompt(value: Any, where: str, allowed: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise BadRequest(f"{where}={shown(value)}: must be {allowed}")
    if not value:
        raise BadRequest(f"{where}: must not be an empty list")
    for index, token_id in enumerate(value):
        if type(token_id) is not int or token_id < 0:
            raise BadRequest(
                f"{where}[{index}]={shown(token_id)}: must be a token id, a whole number from 0 on"
            )
    return tuple(value)
