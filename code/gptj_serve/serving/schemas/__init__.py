"""The request and response schemas, one module each; the body's shape says which one a client speaks."""

import json
from collections.abc import Sequence
from typing import Any

from gptj_serve.errors import BadRequest
from gptj_serve.serving import body
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.schemas import guide, plain, tgi

_ACCEPTED = (
    'send {"inputs": string or list of strings, "parameters": {...}},'
    ' {"inputs": {"text_inputs": string or list of strings, "parameters": {...}}}, or text/plain'
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


def render(call: Call, answers: Sequence[Answer]) -> tuple[bytes, str]:
    """The answer's body and content type."""
    if call.ask.schema == plain.NAME:
        document: Any = plain.render(call, answers)
    elif call.ask.schema == guide.NAME:
        document = guide.render(call, answers)
    else:
        document = tgi.render(call, answers)
    if isinstance(document, str):
        return document.encode(), body.PLAIN_UTF8
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode(), body.JSON


def _read_document(document: Any) -> Ask:
    if not isinstance(document, dict):
        raise BadRequest(f"the body must be a JSON object; {_ACCEPTED}")
    if document.get("inputs") is None:
        if "prompt" in document:
            raise BadRequest(f"prompt: the OpenAI schema is not served here; {_ACCEPTED}")
        raise BadRequest(f"inputs: is missing; {_ACCEPTED}")
    if isinstance(document["inputs"], dict):
        return guide.read(document)
    return tgi.read(document)
