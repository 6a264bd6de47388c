"""The request and response schemas, a module each; the body's shape shows which schema a client speaks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gptj_serve.errors import BadRequest, UnsupportedMediaType
from gptj_serve.serving import body
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.schemas import chat, guide, openai, plain, tgi
from gptj_serve.serving.schemas.schema import Schema, encode

_ACCEPTED = (
    'send {"inputs": string or list of strings, "parameters": {...}},'
    ' {"inputs": {"text_inputs": string or list of strings, "parameters": {...}}},'
    ' {"prompt": string or list of strings, "max_tokens": number, ...},'
    ' {"messages": [{"role": string, "content": string}], ...}, or text/plain'
)


TGI = tgi.Tgi()
COMPLETIONS = openai.Completions()
_BY_NAME = {one.name: one for one in (TGI, COMPLETIONS, chat.Chat(), guide.Guide(), plain.Plain())}


def of(name: str) -> Schema:
    """The schema that `Ask.schema` names."""
    return _BY_NAME[name]


def read(data: bytes, content_type: str | None, max_bytes: int) -> Ask:
    """Read a body in whatever schema it is.

    Raises:
        ServingError: 400, 413 or 415.
    """
    kind = body.media_type(content_type)
    text = body.read_text(data, max_bytes)
    if kind == body.PLAIN:
        return plain.read(text)
    document = body.read_json(text)
    if not isinstance(document, dict):
        raise BadRequest(f"the body must be a JSON object; {_ACCEPTED}")
    if isinstance(document.get("inputs"), dict):
        return guide.read(document)
    if document.get("inputs") is not None:
        return tgi.read(document)
    if "prompt" in document:
        return openai.read(document)
    if "messages" in document:
        return chat.read(document)
    raise BadRequest(f"inputs: is missing; {_ACCEPTED}")


def _read_as(read: Callable[[Any], Ask], data: bytes, content_type: str | None, max_bytes: int) -> Ask:
    """Read a body in the one schema of its path.

    Raises:
        ServingError: 400, 413 or 415.
    """
    if body.media_type(content_type) != body.JSON:
        raise UnsupportedMediaType(f"content type {body.PLAIN!r} is not read here; send {body.JSON}")
    document = body.read_json(body.read_text(data, max_bytes))
    if not isinstance(document, dict):
        raise BadRequest("the body must be a JSON object")
    return read(document)


# these functions cross to other processes, where their parts are found by name
read_completions = partial(_read_as, openai.read)
"""Reads the body of ``/v1/completions`` as `read` does."""
read_chat = partial(_read_as, chat.read)
"""Reads the body of ``/v1/chat/completions``."""
read_generate = partial(_read_as, partial(tgi.read_generate, stream=False))
"""Reads the body of TGI's ``/generate``."""
read_generate_stream = partial(_read_as, partial(tgi.read_generate, stream=True))
"""Reads the body of TGI's ``/generate_stream``."""


def render(
    call: Call, answers: Sequence[Answer], request_id: str = "", num_generated: int | None = None
) -> tuple[bytes, str]:
    """The answer's body and content type.

    Args:
        call: What was asked.
        answers: The answers for the client, all of the first prompt first.
        request_id: The call's id.
        num_generated: How many tokens all candidates have; None if there were only the answers.
    """
    document = of(call.ask.schema).render(call, answers, request_id, num_generated)
    if isinstance(document, str):
        return document.encode(), body.PLAIN_UTF8
    return _to_json(document), body.JSON


def _to_json(document: Any) -> bytes:
    """Encode JSON one answer at a time, so that other threads can run in between."""
    if isinstance(document, list):
        return b"[" + b",".join(encode(one).encode() for one in document) + b"]"
    if isinstance(document, dict):
        members = (encode(name).encode() + b":" + _to_json(value) for name, value in document.items())
        return b"{" + b",".join(members) + b"}"
    return encode(document).encode()


def guess(data: bytes) -> Schema:
    """The schema for the error of a body that could not be read: OpenAI's, or one of the others."""
    is_openai = (b'"prompt"' in data or b'"messages"' in data) and b'"inputs"' not in data
    return COMPLETIONS if is_openai else TGI
