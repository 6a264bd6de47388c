"""The ASGI application: every path that the front answers."""

import functools
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

import gptj_serve
from gptj_serve import demo
from gptj_serve.errors import BadRequest, MethodNotAllowed, ModelNotFound, NotFound, ServingError
from gptj_serve.serving import schemas
from gptj_serve.serving.body import compact
from gptj_serve.serving.http import headers, openapi
from gptj_serve.serving.http.generate import Generate, Shared
from gptj_serve.serving.schemas.field_checks import MAX_STOPS
from gptj_serve.serving.service import MAX_SEQUENCES

PATHS = {
    "/invocations": "POST",
    # TGI's clients post to the base URL that they were given
    "/": "POST",
    "/generate": "POST",
    "/generate_stream": "POST",
    "/info": "GET",
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
    "/v1/models": "GET",
    "/v1/models/{name:path}": "GET",
    "/ping": "GET",
    "/health": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
}


def build(shared: Shared) -> Starlette:
    """The application.

    Args:
        shared: What the endpoints work with.
    """
    generate = Generate(shared, schemas.read)
    name = shared.link.info.model_name
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "gptj-serve"}
    endpoints: dict[str, Any] = {
        "/invocations": generate,
        "/generate": Generate(shared, schemas.read_generate),
        "/generate_stream": Generate(shared, schemas.read_generate_stream),
        "/info": functools.partial(_info, shared),
        "/v1/completions": Generate(shared, schemas.read_completions, schemas.COMPLETIONS),
        "/v1/chat/completions": Generate(shared, schemas.read_chat, schemas.COMPLETIONS),
        "/v1/models": functools.partial(_document, {"object": "list", "data": [model]}),
        "/v1/models/{name:path}": functools.partial(_model, model),
        "/ping": functools.partial(_ping, shared),
        "/health": functools.partial(_ping, shared),  # other servers' name for the same
        "/metrics": functools.partial(_metrics, shared),
        "/openapi.json": functools.partial(_document, openapi.document(shared.settings.page, name)),
    }
    routes = [Route(path, endpoint, methods=[PATHS[path]]) for path, endpoint in endpoints.items()]
    root = ["POST", "GET"] if shared.settings.page else ["POST"]
    routes.append(Route("/", _Root(generate), methods=root))
    origins = shared.settings.cors_origins
    cors = Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app = Starlette(
        routes=routes,
        middleware=[cors] if origins else [],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
    )
    app.router.redirect_slashes = False  # a redirect would send clients to whatever host they have named
    return app


async def _ping(shared: Shared, _: Request) -> Response:
    trouble = shared.link.trouble(shared.settings.stall_timeout_s)
    if trouble is None:
        return _json(200, {"status": "ok"})
    return _json(503, {"error": trouble, "error_type": "unavailable"})


async def _metrics(shared: Shared, _: Request) -> Response:
    body, content_type = shared.metrics.render()
    return Response(body, media_type=content_type)


async def _model(model: dict[str, Any], request: Request) -> Response:
    name = request.path_params["name"]
    if name == model["id"]:
        return _json(200, model)
    return _error(
        request, ModelNotFound(f"the model {name[:200]!r} does not exist; there is {model['id']!r}")
    )


async def _info(shared: Shared, _: Request) -> Response:
    """What TGI tells about itself, of which its clients use some."""
    try:
        info = shared.link.info
    except ServingError as error:
        return _json(error.status, {"error": error.message, "error_type": error.kind})
    told = {
        "model_id": info.model_name,
        "model_name": "demo" if Path(info.model_dir) == demo.MODEL_DIR else Path(info.model_dir).name,
        "engine": info.engine,
        "model_sha": None,
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": shared.settings.max_queue,
        "max_best_of": info.max_batch_size,
        "max_stop_sequences": MAX_STOPS,
        "max_input_tokens": info.max_context - 1,
        "max_total_tokens": info.max_context,
        "validation_workers": 1,
        "auto_truncate": False,
        "max_client_batch_size": MAX_SEQUENCES,
        "router": "gptj-serve",
        "version": gptj_serve.__version__,
        "sha": None,
        "docker_label": None,
    }
    return _json(200, told)


async def _document(document: dict[str, Any], _: Request) -> Response:
    """An endpoint for a document that does not change."""
    return _json(200, document)


class _Root:
    """The endpoint that gives the page to GET, and generates text for POST."""

    def __init__(self, generate: Generate) -> None:
        self._generate = generate

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "POST":
            return await self._generate(scope, receive, send)
        page = resources.files("gptj_serve.serving.http").joinpath("page.html").read_text()
        return await HTMLResponse(page)(scope, receive, send)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = ", ".join(f"{method} {path.replace(':path', '')}" for path, method in PATHS.items())
    message = f"{request.method} {request.url.path[:200]} is not served; there are {known}"
    if request.method == "OPTIONS":
        message += "; web pages of other origins are let in by the setting GPTJ_CORS_ORIGINS"
    kind = {404: NotFound, 405: MethodNotAllowed}.get(error.status_code, BadRequest)
    return _error(request, kind(message), error.status_code, error.headers)


def _error(
    request: Request, error: ServingError, status: int | None = None, more: Mapping[str, str] | None = None
) -> Response:
    """The answer for an error, in OpenAI's form on OpenAI's paths."""
    document: Any = {"error": error.message, "error_type": error.kind}
    if request.url.path.startswith("/v1/"):
        request_id = headers.request_id(headers.read(request.scope["headers"]))
        document = schemas.COMPLETIONS.error(error, request_id)
    return _json(status or error.status, document, more)


async def _fail(_: Request, _error: Exception) -> Response:
    return _json(500, {"error": "internal error", "error_type": "internal"})


def _json(status: int, document: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(compact(document), status, headers, "application/json")
