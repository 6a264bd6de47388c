"""Hugging Face's schema: ``{"inputs": ..., "parameters": {...}}``, as TGI and the pipelines have it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gptj_serve.errors import BadRequest, ServingError
from gptj_serve.serving.call import Ask, Call, Prompt
from gptj_serve.serving.generation import Answer, Delta, LikelyToken, Token
from gptj_serve.serving.parameters import (
    COMMON,
    Parameters,
    boolean,
    checked_elsewhere,
    integer,
    join_stops,
    number,
    object_schema,
    only,
    read_fields,
    shown,
)
from gptj_serve.serving.schemas.streaming import event

NAME = "tgi"
MAX_TOP_TOKENS = 5
"""TGI's own default for its limit."""

_CHECKS = {
    **COMMON,
    "frequency_penalty": number(-2, 2),
    # TGI's clients send these even where they change nothing
    "best_of": only(1),
    "decoder_input_details": only(False),
    "grammar": only(None),
    "adapter_id": only(None),
    "top_n_tokens": integer(0, MAX_TOP_TOKENS),
    "watermark": only(False),
}

_PROMPT = {"type": "string", "minLength": 1}
PROMPTS = checked_elsewhere({"anyOf": [_PROMPT, {"type": "array", "items": _PROMPT, "minItems": 1}]})
"""The check of what `read_prompts` reads."""

_FIELDS = {"inputs": PROMPTS, "parameters": checked_elsewhere(object_schema(_CHECKS)), "stream": boolean}


def request_schema() -> dict[str, Any]:
    """The JSON Schema of the bodies that `read` reads."""
    return object_schema(_FIELDS, required=["inputs"])


def read(document: dict[str, Any]) -> Ask:
    """Read a body.

    Raises:
        BadRequest: A field is missing, unknown or wrong.
    """
    fields = read_fields(document, _FIELDS, "body", dict.fromkeys(_CHECKS, "belongs into parameters"))
    stream = fields.get("stream", False)
    texts, is_list = read_prompts(fields.get("inputs"), "inputs")
    beside = dict.fromkeys(("inputs", "stream"), "belongs beside parameters, not into it")
    parameters = read_fields(fields.get("parameters"), _CHECKS, "parameters", beside)
    parameters = join_stops(parameters, "parameters")
    tells_tokens = stream or parameters.get("details", False)
    if stream:
        _check_stream(len(texts), parameters.get("num_return_sequences", 1))
    return Ask(
        schema=NAME,
        texts=texts,
        is_list=is_list,
        prompts_field="inputs",
        parameters_field="parameters",
        parameters=replace(
            to_parameters(parameters),
            logprobs=stream,  # its tokens always have theirs
            num_top_logprobs=parameters.get("top_n_tokens", 0) if tells_tokens else 0,
        ),
        stream=stream,
    )


def read_prompts(value: Any, where: str) -> tuple[tuple[str, ...], bool]:
    """One prompt or a list of them, and whether it was a list."""
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


def to_parameters(fields: dict[str, Any]) -> Parameters:
    """Drop the fields that were only checked."""
    known = Parameters.__dataclass_fields__.keys() - {"best_of"}
    return Parameters(**{name: fields[name] for name in fields if name in known})


def render(call: Call, answers: Sequence[Answer]) -> list[Any]:
    """A list with one entry an answer; with several answers for each of a list's prompts, a list of lists."""
    groups = grouped(call, answers)
    if call.ask.is_list and call.parameters.num_return_sequences > 1:
        return groups
    return [entry for group in groups for entry in group]


def grouped(call: Call, answers: Sequence[Answer]) -> list[list[dict[str, Any]]]:
    """The answers' entries, one list a prompt."""
    num_answers = call.parameters.num_return_sequences
    return [
        [_entry(call, prompt, answer) for answer in answers[index * num_answers : (index + 1) * num_answers]]
        for index, prompt in enumerate(call.prompts)
    ]


class Stream:
    """TGI's stream of the one sequence of a call; see `StreamRenderer`.

    Every token has an event, and the last one the whole answer. A token's ``text`` is what became final
    with it, so the texts joined are the answer, whatever stop strings and split characters held back.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        (self._prompt,) = call.prompts
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
                delta = replace(delta, text=self._held.text + delta.text, token=self._held.token)
            else:
                before = self._event(self._held)
            self._held = None
        if self._is_last(delta):
            self._held = delta
            return before
        return before + self._event(delta)

    def end(self, answers: tuple[Answer, ...]) -> bytes:  # noqa: ARG002 - `StreamRenderer` has it
        """Nothing: the sequence's last event told everything."""
        return b""

    def error(self, error: ServingError, request_id: str) -> bytes:
        """The event for an error after the first byte."""
        return event(error.to_body(request_id))

    def _is_last(self, delta: Delta) -> bool:
        """Whether the end comes next. TGI's clients expect it in the last token's event, not after it."""
        if delta.token is None or delta.finish_reason is not None:
            return False
        is_full = self._num_tokens >= self._prompt.sampling.max_new_tokens
        return is_full or delta.token.token_id in self._call.eos_token_ids

    def _event(self, delta: Delta) -> bytes:
        token = delta.token
        if token is None and not delta.text and delta.finish_reason is None:
            return b""
        self._num_events += 1
        self._pieces.append(delta.text)
        rendered = {
            "id": token.token_id if token else 0,
            "text": delta.text,
            "logprob": token.logprob if token else None,
            # clients skip the text of special tokens
            "special": not delta.text and (token is None or token.special),
        }
        top = {"top_tokens": [_token(one) for one in token.top]} if token and token.top else {}
        start = self._prompt.text if self._call.parameters.return_full_text else ""
        text = details = None
        if delta.finish_reason is not None:
            text = start + "".join(self._pieces)
            details = {
                "finish_reason": delta.finish_reason,
                "generated_tokens": self._num_tokens,
                "input_length": len(self._prompt.token_ids),
                "seed": self._prompt.seed,
            }
        head = {"index": self._num_events, "token": rendered, **top}
        return event({**head, "generated_text": text, "details": details})


def _check_stream(num_prompts: int, num_return_sequences: int) -> None:
    if num_prompts > 1:
        raise BadRequest(f"inputs: has {num_prompts} prompts; must be one with stream=true")
    if num_return_sequences > 1:
        raise BadRequest(
            f"parameters.num_return_sequences={num_return_sequences}: must be 1 with stream=true"
        )


def _entry(call: Call, prompt: Prompt, answer: Answer) -> dict[str, Any]:
    start = prompt.text if call.parameters.return_full_text else ""
    entry: dict[str, Any] = {"generated_text": start + answer.text}
    if call.parameters.details:
        entry["details"] = _details(prompt, answer)
    return entry


def _details(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    has_top = any(token.top for token in answer.tokens)
    top = {"top_tokens": [[_token(one) for one in token.top] for token in answer.tokens]} if has_top else {}
    return {
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(prompt.token_ids),
        "generated_tokens": answer.num_tokens,
        "seed": prompt.seed,
        "prefill": [],
        "tokens": [_token(token) for token in answer.tokens],
        **top,
    }


def _token(token: Token | LikelyToken) -> dict[str, Any]:
    return {"id": token.token_id, "text": token.text, "logprob": token.logprob, "special": token.special}
