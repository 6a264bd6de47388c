"""Makes the OpenAPI document: every path, what it takes and everything that it answers."""

from typing import Any

import gptj_serve
from gptj_serve.serving import body
from gptj_serve.serving.http import headers
from gptj_serve.serving.http.openapi_answers import ANSWERS, COUNT, STRING, Schema, any_of, ref
from gptj_serve.serving.schemas import chat, guide, openai, tgi
from gptj_serve.serving.schemas.schema import CONTENT_TYPE

_STATUSES = {
    400: "The request is wrong: the message names the field and its range",
    404: "There is no model of that name",
    405: "The path has another method, which `Allow` names",
    408: "The request's head did not come in time",
    413: "The body is too large",
    415: "The content type or its charset is not read",
    429: "The queue is full; `Retry-After` says when to try again",
    431: "The request's head is too long",
    500: "An error of the server",
    503: "The engine is gone or shutting down, or there are too many connections",
    504: "No answer within the request's time",
}
_EITHER_ERROR = any_of(ref("Error"), ref("OpenAIError"))
_ANYWHERE = (400, 405, 408, 431, 500, 503)
"""The statuses that every path may answer; most of them refuse a request before its path is known."""
_GENERATING = (400, 413, 415, 429, 500, 503, 504)


def _header(description: str, schema: Schema, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema}


_SECONDS = {"type": "number", "minimum": 0}
_ANSWER_HEADERS = {
    headers.REQUEST_ID: _header("The request's", STRING, required=True),
    headers.CUSTOM_ATTRIBUTES: _header("As the client sent it", STRING),
    "x-prompt-tokens": _header("Tokens of all prompts", COUNT, required=True),
    "x-generated-tokens": _header("Tokens of all answers; not of a stream", COUNT),
    "x-queue-time": _header("Seconds in the engine's queue; not of a stream", _SECONDS),
    "x-inference-time": _header("Seconds from arrival to the last token; not of a stream", _SECONDS),
    "x-time-per-token": _header("Seconds between tokens; not of a stream", _SECONDS),
}
_LIMIT = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": headers.MAX_TIMEOUT_S}
_PARAMETERS = [
    {"name": name, "in": "header", **_header(what, schema)}
    for name, what, schema in (
        (headers.TIMEOUT, "Seconds, if less than the server's own limit", _LIMIT),
        (headers.REQUEST_ID, "Comes back if it has letters, digits, `.`, `_`, `-` only, 128 at most", STRING),
        (headers.CUSTOM_ATTRIBUTES, "Comes back if it has at most 1024 printable characters", STRING),
    )
]

_REQUESTS: dict[str, Schema] = {
    "HuggingFaceRequest": tgi.REQUEST,
    "GenerateRequest": tgi.GENERATE_REQUEST,
    "GuideRequest": guide.REQUEST,
    "CompletionRequest": openai.REQUEST,
    "ChatCompletionRequest": chat.REQUEST,
}
_DESCRIPTION = (
    "Generates text. A field that is `null` has its default; one that is not here is refused. What depends on"
    " the model (its context, its vocabulary, the engine's batch size) or on several fields is checked too,"
    " and an error says what was wrong. Every GET path answers HEAD; other paths are a 404."
)


def document(has_page: bool, model_name: str) -> dict[str, Any]:
    """The document.

    Args:
        has_page: Whether there is a page to try the service.
        model_name: The model's name.
    """
    health = _get("Whether the model is loaded and the engine moves", _json("Health"))
    paths = {
        "/invocations": {"post": _invocations()},
        "/": {"post": _invocations()},
        **_paths_of_one_schema(),
        "/info": {"get": _get("The model and its limits, as TGI tells them", _json("Info"))},
        "/v1/models": {"get": _get("The model, in OpenAI's list", _json("Models"), _EITHER_ERROR)},
        "/v1/models/{name}": {"get": _model(model_name)},
        "/ping": {"get": health},
        "/health": {"get": health},
        "/metrics": {"get": _get("Figures for Prometheus", {body.PLAIN: {"schema": STRING}})},
        "/openapi.json": {"get": _get("This document", {body.JSON: {"schema": {"type": "object"}}})},
    }
    if has_page:
        paths["/"]["get"] = _get("A page to try it", {"text/html": {"schema": STRING}})
    info = {"title": "GPT-J", "version": gptj_serve.__version__, "description": _DESCRIPTION}
    components = {"schemas": {**_REQUESTS, **ANSWERS}}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _invocations() -> dict[str, Any]:
    return _generation(
        "Generate text; the body's shape says which schema it speaks, and the answer follows it. Plain text"
        " is answered with plain text, or with JSON if `Accept` prefers it",
        {
            **_json("HuggingFaceRequest", "GuideRequest", "CompletionRequest", "ChatCompletionRequest"),
            body.PLAIN: {"schema": {"type": "string", "minLength": 1}},
        },
        {
            **_json("HuggingFaceAnswer", "GuideAnswer", "Completion", "ChatCompletion"),
            body.PLAIN: {"schema": STRING},
            **_events("HuggingFaceEvent", "CompletionChunk", "ChatCompletionChunk"),
        },
        _EITHER_ERROR,
    )


def _paths_of_one_schema() -> dict[str, Any]:
    return {
        "/generate": {
            "post": _generation(
                "TGI's path for a whole answer",
                _json("GenerateRequest"),
                _json("GeneratedText"),
                ref("Error"),
            )
        },
        "/generate_stream": {
            "post": _generation(
                "TGI's path for a stream", _json("GenerateRequest"), _events("HuggingFaceEvent"), ref("Error")
            )
        },
        "/v1/completions": {
            "post": _generation(
                "OpenAI's completions",
                _json("CompletionRequest"),
                {**_json("Completion"), **_events("CompletionChunk")},
                ref("OpenAIError"),
            )
        },
        "/v1/chat/completions": {
            "post": _generation(
                "OpenAI's chat; a 400 unless the model has a chat template that can be used",
                _json("ChatCompletionRequest"),
                {**_json("ChatCompletion"), **_events("ChatCompletionChunk")},
                ref("OpenAIError"),
            )
        },
    }


def _json(*names: str) -> dict[str, Any]:
    """JSON content with one of several schemas."""
    found = [ref(name) for name in names]
    return {body.JSON: {"schema": found[0] if len(found) == 1 else any_of(*found)}}


def _events(*names: str) -> dict[str, Any]:
    """A stream of events; before OpenAPI 3.2, its schema is that of each event."""
    told = any_of(*map(ref, (*names, "Error", "OpenAIError")))
    data = {**STRING, "contentMediaType": body.JSON, "contentSchema": told}
    either = any_of(data, {"enum": ["[DONE]"]})  # this is OpenAI's last event
    schema = {"type": "object", "description": "Each event", "properties": {"data": either}}
    return {CONTENT_TYPE.partition(";")[0]: {"schema": schema}}


def _generation(
    summary: str, request: dict[str, Any], answer: dict[str, Any], error: Schema
) -> dict[str, Any]:
    own = {str(status): _error(status, error) for status in _GENERATING}
    # below the application, errors are not OpenAI's
    either = any_of(error, ref("Error"))
    common = {str(status): _error(status, either) for status in _ANYWHERE}
    seconds = {"type": "integer", "minimum": 1}
    own["429"]["headers"] = {"Retry-After": _header("Seconds", seconds, required=True)}
    found = {"description": "The answer", "headers": _ANSWER_HEADERS, "content": answer}
    return {
        "summary": summary,
        "parameters": _PARAMETERS,
        "requestBody": {"required": True, "content": request},
        "responses": {"200": found, **own, **common},
    }


def _get(summary: str, content: dict[str, Any], error: Schema | None = None) -> dict[str, Any]:
    found = {"description": summary, "content": content}
    errors = {str(status): _error(status, error or ref("Error")) for status in _ANYWHERE}
    return {"summary": summary, "responses": {"200": found, **errors}}


def _model(model_name: str) -> dict[str, Any]:
    described = _get("The model, if that is its name", _json("Model"), _EITHER_ERROR)
    described["responses"]["404"] = _error(404, ref("OpenAIError"))
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [model_name]}}
    return {**described, "parameters": [name]}


def _error(status: int, schema: Schema) -> dict[str, Any]:
    return {"description": _STATUSES[status], "content": {body.JSON: {"schema": schema}}}
