"""The ASGI application: every path that the front answers."""

import functools
import json
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from gptj_serve.serving import schemas
from gptj_serve.serving.call import Ask
from gptj_serve.serving.http import openapi
from gptj_serve.serving.http.generate import Generate, Shared
from gptj_serve.serving.schemas.chat import ChatTemplate
from gptj_serve.serving.schemas.openai import MODEL_NAME

PATHS = {
    "/invocations": "POST",
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
    "/v1/models": "GET",
    "/ping": "GET",
    "/health": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
}


def build(shared: Shared, chat_template: ChatTemplate | None) -> Starlette:
    """The application.

    Args:
        shared: What the endpoints work with.
        chat_template: The model's, if it has one.
    """
    read_chat = functools.partial(_read_chat, chat_template)
    endpoints: dict[str, Any] = {
        "/invocations": Generate(shared, schemas.read, is_openai=False),
        "/v1/completions": Generate(shared, schemas.read_completions, is_openai=True),
        "/v1/chat/completions": Generate(shared, read_chat, is_openai=True),
        "/v1/models": functools.partial(_models, int(time.time())),
        "/ping": functools.partial(_ping, shared),
        "/health": functools.partial(_ping, shared),  # other servers' name for it
        "/metrics": functools.partial(_metrics, shared),
        "/openapi.json": functools.partial(_openapi, openapi.document(shared.settings.page)),
    }
    routes = [Route(path, endpoint, methods=[PATHS[path]]) for path, endpoint in endpoints.items()]
    if shared.settings.page:
        routes.append(Route("/", _page, methods=["GET"]))
    origins = shared.settings.cors_origins
    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    return Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )


def _read_chat(template: ChatTemplate | None, data: bytes, content_type: str | None, max_bytes: int) -> Ask:
    return schemas.read_chat(data, content_type, max_bytes, template)


async def _ping(shared: Shared, _: Request) -> Response:
    trouble = shared.link.trouble(shared.settings.stall_timeout_s)
    if trouble is None:
        return _json(200, {"status": "ok"})
    return _json(503, {"error": trouble, "error_type": "unavailable"})


async def _metrics(shared: Shared, _: Request) -> Response:
    body, content_type = shared.metrics.render()
    return Response(body, media_type=content_type)


async def _models(created: int, _: Request) -> Response:
    model = {"id": MODEL_NAME, "object": "model", "created": created, "owned_by": "gptj-serve"}
    return _json(200, {"object": "list", "data": [model]})


async def _openapi(document: dict[str, Any], _: Request) -> Response:
    return _json(200, document)


async def _page(_: Request) -> Response:
    return HTMLResponse(resources.files("gptj_serve.serving.http").joinpath("page.html").read_text())


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "validation")
    known = ", ".join(f"{method} {path}" for path, method in PATHS.items())
    message = f"{request.method} {request.url.path[:200]} is not served; there are {known}"
    return _json(error.status_code, {"error": message, "error_type": kind}, error.headers)


async def _fail(_: Request, _error: Exception) -> Response:
    return _json(500, {"error": "internal error", "error_type": "internal"})


def _json(status: int, document: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(document).encode(), status, headers, "application/json")
