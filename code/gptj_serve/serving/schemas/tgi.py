"""Hugging Face's schema: ``{"inputs": ..., "parameters": {...}}``, as TGI and the pipelines have it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from gptj_serve.errors import BadRequest
from gptj_serve.serving.call import Ask, Call, Prompt
from gptj_serve.serving.generation import DEADLINE, Answer, Delta, LikelyToken, Token
from gptj_serve.serving.schemas.common_fields import COMMON, join_stops, read_best_of, to_parameters
from gptj_serve.serving.schemas.field_checks import (
    MAX_TOKENS,
    boolean,
    checked_elsewhere,
    integer,
    number,
    object_schema,
    only,
    read_fields,
    shown,
)
from gptj_serve.serving.schemas.schema import Schema, encode_logprob, encode_text, server_sent_event

MAX_TOP_TOKENS = 5
"""The default of TGI's own limit."""

_CHECKS = {
    **COMMON,
    "frequency_penalty": number(-2, 2),
    # TGI's clients send these even if they change nothing
    "best_of": integer(1, MAX_TOKENS),
    "decoder_input_details": only(False),
    "grammar": only(None),
    "adapter_id": only(None),
    "top_n_tokens": integer(0, MAX_TOP_TOKENS),
    "watermark": only(False),
}

_PROMPT = {"type": "string", "minLength": 1}
PROMPTS = checked_elsewhere({"anyOf": [_PROMPT, {"type": "array", "items": _PROMPT, "minItems": 1}]})
"""The check of what `read_prompts` reads."""

_OPTIONS = {"use_cache": boolean, "wait_for_model": boolean, "use_gpu": boolean}
"""Options of Hugging Face's hosted API, none of which changes an answer here."""

_FIELDS = {
    "inputs": PROMPTS,
    "parameters": checked_elsewhere(object_schema(_CHECKS)),
    "stream": boolean,
    "add_special_tokens": boolean,
    "options": checked_elsewhere(object_schema(_OPTIONS)),
}

REQUEST = object_schema(_FIELDS, required=["inputs"])
"""The JSON Schema of the bodies that `read` reads."""
GENERATE_REQUEST = object_schema({**_FIELDS, "inputs": checked_elsewhere(_PROMPT)}, required=["inputs"])
"""The JSON Schema of the bodies that `read_generate` reads."""

_SAMPLES_UNLESS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "min_p": 0.0}
"""Fields that ask for sampling unless they have these values, as in TGI, which has no ``min_p``."""


def read(document: dict[str, Any]) -> Ask:
    """Read a body.

    Raises:
        BadRequest: A field is missing, unknown or wrong.
    """
    fields = read_fields(document, _FIELDS, "body", dict.fromkeys(_CHECKS, "belongs into parameters"))
    stream = fields.get("stream", False)
    texts, is_list = read_prompts(fields.get("inputs"), "inputs")
    beside = dict.fromkeys(("inputs", "stream"), "belongs beside parameters, not into it")
    read_fields(fields.get("options"), _OPTIONS, "options")
    parameters = read_fields(fields.get("parameters"), _CHECKS, "parameters", beside)
    parameters = _translate(join_stops(parameters, "parameters"))
    tells_tokens = stream or parameters.get("details", False)
    if stream:
        _check_stream(len(texts), parameters)
    return Ask(
        schema=Tgi.name,
        texts=texts,
        is_list=is_list,
        prompts_field="inputs",
        parameters_field="parameters",
        parameters=replace(
            to_parameters(parameters),
            logprobs=stream,  # its tokens always have log-probabilities
            num_top_logprobs=parameters.get("top_n_tokens", 0) if tells_tokens else 0,
        ),
        stream=stream,
        adds_special_tokens=fields.get("add_special_tokens", True),
    )


def read_generate(document: dict[str, Any], stream: bool) -> Ask:
    """Read a body of TGI's ``/generate`` or ``/generate_stream``: one prompt, one answer, and no lists.

    Args:
        document: The body.
        stream: Whether the path streams.

    Raises:
        BadRequest: As for `read`, or the body asks for something else than the path does.
    """
    if document.get("stream") not in (None, stream):
        other = "/generate" if stream else "/generate_stream"
        raise BadRequest(f"stream={shown(document['stream'])}: {other} is the path for that; leave it out")
    ask = read({**document, "stream": stream})
    if ask.is_list:
        raise BadRequest("inputs: must be a string here; POST / and /invocations take lists")
    if ask.parameters.num_return_sequences > 1:
        number = ask.parameters.num_return_sequences
        raise BadRequest(f"parameters.num_return_sequences={number}: must be 1 here; POST / returns several")
    return replace(ask, is_bare=True)


def _translate(fields: dict[str, Any]) -> dict[str, Any]:
    translated = {**fields, "do_sample": _samples(fields), "best_of": _best_of(fields)}
    if "max_new_tokens" in fields:
        # as in today's Transformers; the guide's version was older
        translated.pop("max_length", None)
    return translated


def _samples(fields: dict[str, Any]) -> bool:
    return fields.get("do_sample", False) or any(
        fields.get(name, neutral) != neutral for name, neutral in _SAMPLES_UNLESS.items()
    )


def _best_of(fields: dict[str, Any]) -> int | None:
    best_of = read_best_of(fields, "parameters", "num_return_sequences")
    if best_of is not None and (fields.get("temperature") == 0 or not _samples(fields)):
        raise BadRequest(f"parameters.best_of={best_of}: must be 1 without sampling (all would be the same)")
    return best_of


def read_prompts(value: Any, where: str) -> tuple[tuple[str, ...], bool]:
    """Read one prompt or a list of them, and whether it was a list."""
    if isinstance(value, str):
        return (value,), False
    if not isinstance(value, list):
        raise BadRequest(f"{where}={shown(value)}: must be a string or a list of strings")
    if not value:
        raise BadRequest(f"{where}: must not be an empty list")
    for index, text in enumerate(value):
        if not isinstance(text, str):
            raise BadRequest(f"{where}[{index}]={shown(text)}: must be a string")
    return tuple(value), True


def grouped(call: Call, answers: Sequence[Answer]) -> list[list[dict[str, Any]]]:
    """The answers' entries, as a list for each prompt."""
    num_answers = call.parameters.num_return_sequences
    return [
        [_entry(call, prompt, answer) for answer in answers[index * num_answers : (index + 1) * num_answers]]
        for index, prompt in enumerate(call.prompts)
    ]


class Tgi(Schema):
    """Hugging Face's schema."""

    name = "tgi"

    def render(
        self,
        call: Call,
        answers: Sequence[Answer],
        request_id: str,
        num_generated: int | None,
    ) -> Any:
        """A list with an entry for each answer; only the entry for a bare call.

        With several answers for each of a list's prompts, a list of lists.
        """
        groups = grouped(call, answers)
        if call.ask.is_bare:
            return groups[0][0]
        if call.ask.is_list and call.parameters.num_return_sequences > 1:
            return groups
        return [entry for group in groups for entry in group]

    def stream(self, call: Call, request_id: str) -> "TgiStream":
        """The stream, which has an event for each token."""
        return TgiStream(call)


class TgiStream:
    """TGI's stream of a call's only sequence; see `StreamRenderer`.

    Every token has an event, and the last event has the whole answer. A token's ``text`` is what became final
    with it, so the joined texts are the answer, whatever stop strings and split characters held back.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        (self._prompt,) = call.prompts
        self._ending_ids = frozenset(call.ending_ids)
        self._num_events = 0
        self._num_tokens = 0
        self._pieces: list[str] = []
        self._held: Delta | None = None

    def delta(self, delta: Delta) -> bytes:
        """The event of a token or of the end."""
        before = b""
        if delta.token is not None:
            self._num_tokens += 1
        if self._held is not None:
            if delta.token is None:
                text = self._held.text + delta.text
                delta = msgspec.structs.replace(delta, text=text, token=self._held.token)
            else:
                before = self._event(self._held)
            self._held = None
        if self._is_last(delta):
            self._held = delta
            return before
        return before + self._event(delta)

    def end(self, answers: tuple[Answer, ...]) -> bytes:
        """Nothing, as the sequence's last event told everything."""
        return b""

    def _is_last(self, delta: Delta) -> bool:
        """Whether the end comes next, which TGI's clients expect in the last token's event."""
        if delta.token is None or delta.finish_reason is not None:
            return False
        is_full = self._num_tokens >= self._prompt.sampling.max_new_tokens
        return is_full or delta.token.token_id in self._ending_ids

    def _event(self, delta: Delta) -> bytes:
        token = delta.token
        if token is None and not delta.text and delta.finish_reason is None:
            return b""
        self._num_events += 1
        self._pieces.append(delta.text)
        # clients skip the text of special tokens
        special = not delta.text and (token is None or token.special)
        if token and not token.top and delta.finish_reason is None:
            return self._plain_event(token, delta.text, special)
        rendered = {
            "id": token.token_id if token else 0,
            "text": delta.text,
            "logprob": token.logprob if token else None,
            "special": special,
        }
        top = {"top_tokens": [_token(one) for one in token.top]} if token and token.top else {}
        start = self._prompt.text if self._call.parameters.return_full_text else ""
        text = details = None
        if delta.finish_reason is not None:
            text = start + "".join(self._pieces)
            details = {
                "finish_reason": _finish_reason(delta.finish_reason),
                "generated_tokens": self._num_tokens,
                "input_length": len(self._prompt.token_ids),
                "seed": self._prompt.seed,
            }
        head = {"index": self._num_events, "token": rendered, **top}
        return server_sent_event({**head, "generated_text": text, "details": details})

    def _plain_event(self, token: Token, text: str, special: bool) -> bytes:
        """What `_event` gives for most tokens of most streams, in a fraction of the time."""
        return (
            b'data: {"index":%d,"token":{"id":%d,"text":%b,"logprob":%b,"special":%b},'
            b'"generated_text":null,"details":null}\n\n'
        ) % (
            self._num_events,
            token.token_id,
            encode_text(text),
            encode_logprob(token.logprob),
            b"true" if special else b"false",
        )


def _check_stream(num_prompts: int, parameters: dict[str, Any]) -> None:
    if num_prompts > 1:
        raise BadRequest(f"inputs: has {num_prompts} prompts; must be one with stream=true")
    for name in ("num_return_sequences", "best_of"):
        if (parameters.get(name) or 1) > 1:
            raise BadRequest(f"parameters.{name}={parameters[name]}: must be 1 with stream=true")


def _entry(call: Call, prompt: Prompt, answer: Answer) -> dict[str, Any]:
    start = prompt.text if call.parameters.return_full_text else ""
    entry: dict[str, Any] = {"generated_text": start + answer.text}
    if call.parameters.details:
        entry["details"] = _details(prompt, answer)
    return entry


def _details(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    details = {**_told(prompt, answer), "prompt_tokens": len(prompt.token_ids)}
    if answer.others:
        details["best_of_sequences"] = [
            {"generated_text": other.text, **_told(prompt, other)} for other in answer.others
        ]
    return details


def _told(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    has_top = any(token.top for token in answer.tokens)
    top = {"top_tokens": [[_token(one) for one in token.top] for token in answer.tokens]} if has_top else {}
    return {
        "finish_reason": _finish_reason(answer.finish_reason),
        "generated_tokens": answer.num_tokens,
        "seed": prompt.seed,
        "prefill": [],
        "tokens": [_token(token) for token in answer.tokens],
        **top,
    }


def _finish_reason(reason: str) -> str:
    """TGI's word for the reason; its clients know no others, so a deadline is a limit of length to them."""
    return "length" if reason == DEADLINE else reason


def _token(token: Token | LikelyToken) -> dict[str, Any]:
    return {"id": token.token_id, "text": token.text, "logprob": token.logprob, "special": token.special}
