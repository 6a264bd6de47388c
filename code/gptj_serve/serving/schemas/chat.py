"""OpenAI's chat: the model's template makes a prompt of ``{"messages": [{"role": ..., "content": ...}]}``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptj_serve.errors import BadRequest
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer, Delta, Token
from gptj_serve.serving.schemas import openai, openai_fields, openai_logprobs
from gptj_serve.serving.schemas.field_checks import (
    Check,
    boolean,
    checked_elsewhere,
    integer,
    object_schema,
    read_fields,
    shown,
    string,
)

MAX_TOP_LOGPROBS = 20


def _content(value: Any) -> str | list[dict[str, str]]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string or a list of text parts")
    return [_text_part(part) for part in value]


def _text_part(part: Any) -> dict[str, str]:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError('each part must be {"type": "text", "text": string}')
    if part["type"] != "text":
        raise ValueError(f'a part of type {shown(part["type"])} is not supported, {{"type": "text"}} is')
    if not isinstance(part.get("text"), str):
        raise ValueError("each text part must have a text, which is a string")
    return {"type": "text", "text": part["text"]}


_PART = {
    "type": "object",
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_CONTENT = {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART, "minItems": 1}]}
_MESSAGE: Mapping[str, Check] = {
    "role": string,
    "content": Check(_content, _CONTENT),
    "name": string,
    **openai_fields.MESSAGE_NOT_SERVED,
}
_MESSAGES = {"type": "array", "items": object_schema(_MESSAGE, ["role", "content"]), "minItems": 1}
_CHECKS: Mapping[str, Check] = {
    **openai.SHARED,
    "messages": checked_elsewhere(_MESSAGES),
    "max_completion_tokens": openai.max_tokens,
    "logprobs": boolean,
    "top_logprobs": integer(0, MAX_TOP_LOGPROBS),
    **openai_fields.CHAT_NOT_SERVED,
}

REQUEST = object_schema(_CHECKS, required=["messages"])
"""The JSON Schema of the bodies that `read` reads."""


def read(document: Any) -> Ask:
    """Read a body; its messages still have to become a prompt.

    Raises:
        BadRequest: A field is missing, unknown or wrong.
    """
    fields = read_fields(document, _CHECKS, "body")
    messages = _read_messages(fields.get("messages"))
    if "max_completion_tokens" in fields:
        if "max_tokens" in fields:
            raise BadRequest("body.max_completion_tokens: is another name for max_tokens; send one of them")
        fields["max_tokens"] = fields["max_completion_tokens"]
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        raise BadRequest(f"body.top_logprobs={fields['top_logprobs']}: needs logprobs=true")
    return Ask(
        schema=Chat.name,
        texts=(),
        is_list=False,
        prompts_field="messages",
        parameters_field="body",
        parameters=openai.to_parameters(
            fields,
            details=fields.get("logprobs", False),
            num_top_logprobs=fields.get("top_logprobs", 0),
        ),
        stream=fields.get("stream", False),
        messages=messages,
        adds_special_tokens=fields.get("add_special_tokens", False),
    )


class Chat(openai.Completions):
    """OpenAI's chat completions."""

    name = "chat"
    id_prefix = "chatcmpl"
    whole = "chat.completion"
    chunk = "chat.completion.chunk"

    def logprobs(self, call: Call, tokens: Sequence[Token]) -> dict[str, Any]:
        """The ``logprobs`` of a choice."""
        return openai_logprobs.for_chat(tokens)

    def content(self, call: Call, index: int, answer: Answer) -> dict[str, Any]:
        """The message of a whole answer."""
        return {"message": {"role": "assistant", "content": answer.text}}

    def piece(self, text: str) -> dict[str, Any]:
        """What a chunk adds to the message."""
        return {"delta": {"content": text}}

    def chunk_choices(
        self, call: Call, delta: Delta, is_first: bool, logprobs: dict[str, Any] | None
    ) -> Iterator[dict[str, Any]]:
        """The choices for an event; clients expect the finish reason in a choice without content."""
        if is_first:
            yield openai.choice(delta.index, {"delta": {"role": "assistant", "content": ""}})
        if delta.text:
            yield openai.choice(delta.index, self.piece(delta.text), logprobs)
            logprobs = None
        if delta.finish_reason:
            yield openai.choice(delta.index, {"delta": {}}, logprobs, delta.finish_reason)


def _read_messages(value: Any) -> list[dict[str, Any]]:
    if value is None:
        raise BadRequest("messages: is missing; must be a list of {role, content}")
    if not isinstance(value, list) or not value:
        raise BadRequest(f"messages={shown(value)}: must be a list of {{role, content}}, at least one")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _read_message(value: Any, where: str) -> dict[str, Any]:
    message = read_fields(value, _MESSAGE, where)
    if "role" not in message:
        raise BadRequest(f"{where}.role: is missing; must be a string")
    if "content" not in message:
        if message["role"] != "assistant":
            raise BadRequest(f"{where}.content: is missing; must be a string or a list of text parts")
        message["content"] = ""  # this is an assistant that said nothing
    # fields that change nothing are not passed to the template, which may check whether they are there
    return {name: message[name] for name in ("role", "content", "name") if name in message}
