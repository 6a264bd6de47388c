"""The request and response schemas, one module each; the body's shape says which one a client speaks."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

from gptj_serve.errors import BadRequest, ServingError, UnsupportedMediaType
from gptj_serve.serving import body
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.schemas import chat, guide, openai, plain, tgi
from gptj_serve.serving.schemas.streaming import StreamRenderer, encode

_ACCEPTED = (
    'send {"inputs": string or list of strings, "parameters": {...}},'
    ' {"inputs": {"text_inputs": string or list of strings, "parameters": {...}}},'
    ' {"prompt": string or list of strings, "max_tokens": number, ...},'
    ' {"messages": [{"role": string, "content": string}], ...}, or text/plain'
)


def read(data: bytes, content_type: str | None, max_bytes: int) -> Ask:
    """Read a body in whatever schema it is.

    Raises:
        ServingError: 400, 413 or 415.
    """
    kind = body.media_type(content_type)
    text = body.read_text(data, max_bytes)
    if kind == body.PLAIN:
        return plain.read(text)
    return _read_document(body.read_json(text))


def read_generate(data: bytes, content_type: str | None, max_bytes: int, *, stream: bool) -> Ask:
    """Read the body of TGI's ``/generate`` or, with ``stream``, of its ``/generate_stream``.

    Raises:
        ServingError: 400, 413 or 415.
    """
    return tgi.read_generate(_read_object(data, content_type, max_bytes), stream)


def read_completions(data: bytes, content_type: str | None, max_bytes: int) -> Ask:
    """Read the body of ``/v1/completions``.

    Raises:
        ServingError: 400, 413 or 415.
    """
    return openai.read(_read_object(data, content_type, max_bytes))


def read_chat(data: bytes, content_type: str | None, max_bytes: int) -> Ask:
    """Read the body of ``/v1/chat/completions``.

    Raises:
        ServingError: 400, 413 or 415.
    """
    return chat.read(_read_object(data, content_type, max_bytes))


def render(
    call: Call, answers: Sequence[Answer], request_id: str = "", num_generated: int | None = None
) -> tuple[bytes, str]:
    """The answer's body and content type.

    Args:
        call: What was asked.
        answers: Those that the client gets, all of the first prompt first.
        request_id: The call's.
        num_generated: Tokens of all candidates; None if there were none but the answers.
    """
    if call.ask.schema == plain.NAME:
        document: Any = plain.render(call, answers)
    elif call.ask.schema == guide.NAME:
        document = guide.render(call, answers)
    elif call.ask.schema == openai.NAME:
        document = openai.render(call, answers, request_id, int(time.time()), num_generated)
    elif call.ask.schema == chat.NAME:
        document = chat.render(call, answers, request_id, int(time.time()), num_generated)
    else:
        document = tgi.render(call, answers)
    if isinstance(document, str):
        return document.encode(), body.PLAIN_UTF8
    return b"".join(_pieces(document)), body.JSON


def _pieces(document: Any) -> Iterator[bytes]:
    """JSON, an answer at a time: encoding all at once would let no other thread run meanwhile."""
    if isinstance(document, dict):
        start = b"{"
        for name, value in document.items():
            yield start + encode(name).encode() + b":"
            yield from _pieces(value) if isinstance(value, list) else (encode(value).encode(),)
            start = b","
        yield b"}" if document else b"{}"
    elif isinstance(document, list):
        start = b"["
        for value in document:
            yield start + encode(value).encode()
            start = b","
        yield b"]" if document else b"[]"
    else:
        yield encode(document).encode()


def stream(call: Call, request_id: str) -> StreamRenderer:
    """What renders the answer piece by piece.

    Raises:
        BadRequest: The schema has no streams.
    """
    if call.ask.schema == openai.NAME:
        return openai.Stream(call, request_id)
    if call.ask.schema == chat.NAME:
        return chat.Stream(call, request_id)
    if call.ask.schema == tgi.NAME:
        return tgi.Stream(call)
    raise BadRequest(f"stream=true: the {call.ask.schema} schema has no streams; must be false")


def render_error(error: ServingError, request_id: str, ask_schema: str | None) -> dict[str, Any]:
    """An error's body, in the schema that the client spoke; None if that is not known."""
    if ask_schema in (openai.NAME, chat.NAME):
        return openai.error_body(error, request_id)
    return error.to_body(request_id)


def _read_object(data: bytes, content_type: str | None, max_bytes: int) -> dict[str, Any]:
    if body.media_type(content_type) != body.JSON:
        raise UnsupportedMediaType(f"content type {body.PLAIN!r} is not read here; send {body.JSON}")
    document = body.read_json(body.read_text(data, max_bytes))
    if not isinstance(document, dict):
        raise BadRequest("the body must be a JSON object")
    return document


def _read_document(document: Any) -> Ask:
    if not isinstance(document, dict):
        raise BadRequest(f"the body must be a JSON object; {_ACCEPTED}")
    if document.get("inputs") is None:
        if "prompt" in document:
            return openai.read(document)
        if "messages" in document:
            return chat.read(document)
        raise BadRequest(f"inputs: is missing; {_ACCEPTED}")
    if isinstance(document["inputs"], dict):
        return guide.read(document)
    return tgi.read(document)


def guess(data: bytes) -> str | None:
    """The schema of a body that could not be read, for the error's; None stands for all but OpenAI's."""
    is_openai = (b'"prompt"' in data or b'"messages"' in data) and b'"inputs"' not in data
    return openai.NAME if is_openai else None
