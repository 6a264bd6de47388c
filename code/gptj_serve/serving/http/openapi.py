"""The OpenAPI document: every path, what it takes and everything it answers."""

from typing import Any

import gptj_serve
from gptj_serve.serving import body
from gptj_serve.serving.http import headers
from gptj_serve.serving.http.openapi_answers import STRING, Schema, answers, any_of, ref
from gptj_serve.serving.schemas import chat, guide, openai, tgi
from gptj_serve.serving.schemas.schema import CONTENT_TYPE

EVENTS = CONTENT_TYPE.partition(";")[0]

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
"""What every path may answer: most of it is refused before the path is known."""
_GENERATING = (400, 413, 415, 429, 500, 503, 504)


def document(has_page: bool, model_name: str) -> dict[str, Any]:
    """The document.

    Args:
        has_page: Whether there is a page to try the service.
        model_name: What the model is called.
    """
    health = _get("Whether the model is loaded and the engine moves", body.JSON, ref("Health"))
    paths = {
        "/invocations": {"post": _invocations()},
        "/": {"post": _invocations()},
        "/generate": {"post": _generate()},
        "/generate_stream": {"post": _generate_stream()},
        "/info": {"get": _get("The model and its limits, as TGI tells them", body.JSON, ref("Info"))},
        "/v1/completions": {"post": _completions()},
        "/v1/chat/completions": {"post": _chat()},
        "/v1/models": {"get": _get("The model, in OpenAI's list", body.JSON, ref("Models"), _EITHER_ERROR)},
        "/v1/models/{name}": {"get": _model(model_name)},
        "/ping": {"get": health},
        "/health": {"get": health},
        "/metrics": {"get": _get("Figures for Prometheus", body.PLAIN, STRING)},
        "/openapi.json": {"get": _get("This document", body.JSON, {"type": "object"})},
    }
    if has_page:
        paths["/"]["get"] = _get("A page to try it", "text/html", STRING)
    info = {"title": "GPT-J", "version": gptj_serve.__version__, "description": _DESCRIPTION}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": _schemas()}}


_DESCRIPTION = (
    "Generates text. A field that is `null` has its default; one that is not here is refused. What depends on"
    " the model (its context, its vocabulary, the engine's batch size) or on several fields is checked too,"
    " and an error says what was wrong. Every GET path answers HEAD; other paths are a 404."
)


def _schemas() -> dict[str, Schema]:
    requests = {
        "HuggingFaceRequest": tgi.REQUEST,
        "GenerateRequest": tgi.GENERATE_REQUEST,
        "GuideRequest": guide.REQUEST,
        "CompletionRequest": openai.REQUEST,
        "ChatCompletionRequest": chat.REQUEST,
    }
    return {**requests, **answers()}


def _invocations() -> dict[str, Any]:
    names = ("HuggingFaceRequest", "GuideRequest", "CompletionRequest", "ChatCompletionRequest")
    whole = ("HuggingFaceAnswer", "GuideAnswer", "Completion", "ChatCompletion")
    return _generation(
        "Generate text; the body's shape says which schema it speaks, and the answer follows it. Plain text"
        " is answered with plain text, or with JSON if `Accept` prefers it",
        {
            body.JSON: {"schema": any_of(*map(ref, names))},
            body.PLAIN: {"schema": {"type": "string", "minLength": 1}},
        },
        {
            body.JSON: {"schema": any_of(*map(ref, whole))},
            body.PLAIN: {"schema": STRING},
            EVENTS: _events("HuggingFaceEvent", "CompletionChunk", "ChatCompletionChunk"),
        },
        _EITHER_ERROR,
    )


def _generate() -> dict[str, Any]:
    return _generation(
        "TGI's path for a whole answer",
        {body.JSON: {"schema": ref("GenerateRequest")}},
        {body.JSON: {"schema": ref("GeneratedText")}},
        ref("Error"),
    )


def _generate_stream() -> dict[str, Any]:
    return _generation(
        "TGI's path for a stream",
        {body.JSON: {"schema": ref("GenerateRequest")}},
        {EVENTS: _events("HuggingFaceEvent")},
        ref("Error"),
    )


def _completions() -> dict[str, Any]:
    return _generation(
        "OpenAI's completions",
        {body.JSON: {"schema": ref("CompletionRequest")}},
        {body.JSON: {"schema": ref("Completion")}, EVENTS: _events("CompletionChunk")},
        ref("OpenAIError"),
    )


def _chat() -> dict[str, Any]:
    return _generation(
        "OpenAI's chat; a 400 unless the model has a chat template that can be used",
        {body.JSON: {"schema": ref("ChatCompletionRequest")}},
        {body.JSON: {"schema": ref("ChatCompletion")}, EVENTS: _events("ChatCompletionChunk")},
        ref("OpenAIError"),
    )


def _events(*names: str) -> dict[str, Any]:
    """A stream: before OpenAPI 3.2, the schema of server-sent events is that of each of them."""
    told = any_of(*map(ref, (*names, "Error", "OpenAIError")))
    data = {**STRING, "contentMediaType": body.JSON, "contentSchema": told}
    either = any_of(data, {"enum": ["[DONE]"]})  # OpenAI's last one
    return {"schema": {"type": "object", "description": "Each event", "properties": {"data": either}}}


def _generation(
    summary: str, request: dict[str, Any], answer: dict[str, Any], error: Schema
) -> dict[str, Any]:
    own = {str(status): _error(status, error) for status in _GENERATING}
    # below the application, errors are not OpenAI's
    either = any_of(error, ref("Error"))
    common = {str(status): _error(status, either) for status in _ANYWHERE}
    seconds = {"type": "integer", "minimum": 1}
    own["429"]["headers"] = {"Retry-After": _header("Seconds", seconds, required=True)}
    found = {"description": "The answer", "headers": _answer_headers(), "content": answer}
    return {
        "summary": summary,
        "parameters": _parameters(),
        "requestBody": {"required": True, "content": request},
        "responses": {"200": found, **own, **common},
    }


def _get(summary: str, content_type: str, schema: Schema, error: Schema | None = None) -> dict[str, Any]:
    found = {"description": summary, "content": {content_type: {"schema": schema}}}
    errors = {str(status): _error(status, error or ref("Error")) for status in _ANYWHERE}
    return {"summary": summary, "responses": {"200": found, **errors}}


def _model(model_name: str) -> dict[str, Any]:
    described = _get("The model, if that is its name", body.JSON, ref("Model"), _EITHER_ERROR)
    described["responses"]["404"] = _error(404, ref("OpenAIError"))
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [model_name]}}
    return {**described, "parameters": [name]}


def _error(status: int, schema: Schema) -> dict[str, Any]:
    return {"description": _STATUSES[status], "content": {body.JSON: {"schema": schema}}}


def _parameters() -> list[dict[str, Any]]:
    seconds = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": headers.MAX_TIMEOUT_S}
    given = {
        headers.TIMEOUT: ("Seconds, if less than the server's own limit", seconds),
        headers.REQUEST_ID: ("Comes back if it has letters, digits, `.`, `_`, `-` only, 128 at most", STRING),
        headers.CUSTOM_ATTRIBUTES: ("Comes back if it has at most 1024 printable characters", STRING),
    }
    return [
        {"name": name, "in": "header", "required": False, "description": what, "schema": schema}
        for name, (what, schema) in given.items()
    ]


def _answer_headers() -> dict[str, Any]:
    count, seconds = {"type": "integer", "minimum": 0}, {"type": "number", "minimum": 0}
    return {
        headers.REQUEST_ID: _header("The request's", STRING, required=True),
        headers.CUSTOM_ATTRIBUTES: _header("As the client sent it", STRING),
        "x-prompt-tokens": _header("Tokens of all prompts", count, required=True),
        "x-generated-tokens": _header("Tokens of all answers; not of a stream", count),
        "x-queue-time": _header("Seconds in the engine's queue; not of a stream", seconds),
        "x-inference-time": _header("Seconds from arrival to the last token; not of a stream", seconds),
        "x-time-per-token": _header("Seconds between tokens; not of a stream", seconds),
    }


def _header(description: str, schema: Schema, required: bool = False) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": schema}
