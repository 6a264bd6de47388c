"""moto as a server on loopback for processes, and the same without a socket between for those of tests."""

import functools
import inspect
import io
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session
from moto import backends
from moto.core import responses
from moto.core.botocore_stubber import MockRawResponse
from moto.core.request import environ_key_for_header
from moto.server import ThreadedMotoServer
from werkzeug.test import run_wsgi_app

from support.aws import moto_components, moto_sagemaker

App = Callable[[Any, Any], Any]


@contextmanager
def running() -> Iterator[str]:
    """The server; yields its address. What this process sends there goes to its application at once."""
    _remember_what_never_changes()
    moto_sagemaker.install()
    moto_components.install()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request, which nobody reads
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    assert server._server is not None
    with _short_cut(url, server._server.app):
        yield url
    server.stop()


def _remember_what_never_changes() -> None:
    """moto lists its folder and the methods of a service's class for each request: half of its time."""
    modules = frozenset(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules

    @functools.cache
    def method_names(kind: type) -> frozenset[str]:
        return frozenset(name for name, _ in inspect.getmembers(kind, inspect.isfunction))

    responses.method_names_from_class = method_names


@contextmanager
def _short_cut(url: str, app: App) -> Iterator[None]:
    """Inside, requests to the server are calls of its application: sockets and threads cost more than it."""
    really = URLLib3Session.send

    def send(session: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
        if not request.url.startswith(f"{url}/"):
            return really(session, request)
        body, status, headers = run_wsgi_app(app, _environ(request), buffered=True)
        return AWSResponse(
            request.url, int(status.split()[0]), dict(headers), MockRawResponse(b"".join(body))
        )

    with patch.object(URLLib3Session, "send", send):
        yield


def _environ(request: AWSPreparedRequest) -> Mapping[str, Any]:
    """What a WSGI server makes of a request."""
    parts, body = urlsplit(request.url), request.body or b""
    content = body.read() if hasattr(body, "read") else body
    content = content.encode() if isinstance(content, str) else bytes(content)
    headers = {
        environ_key_for_header(name): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
    }
    headers.pop("HTTP_TRANSFER_ENCODING", None)  # there are no chunks
    return {
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(content),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(parts.path).encode().decode("latin-1"),
        "QUERY_STRING": parts.query,
        "REQUEST_URI": request.url.removeprefix(f"{parts.scheme}://{parts.netloc}"),
        "RAW_URI": request.url.removeprefix(f"{parts.scheme}://{parts.netloc}"),
        "REMOTE_ADDR": "127.0.0.1",
        "SERVER_NAME": str(parts.hostname),
        "SERVER_PORT": str(parts.port),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": parts.netloc,
        **headers,
        "CONTENT_LENGTH": str(len(content)),
    }
