"""SageMaker's runtime on loopback: passes requests on to a container, and answers as AWS does on the wire.

What comes back is what botocore has to parse: HTTP with AWS's errors, and real event streams.
"""

import contextlib
import http.client
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote

from support.loopback_server import serving
from support.server import WAIT_TIMEOUT_S

STREAM, WHOLE, ASYNC = "invocations-response-stream", "invocations", "async-invocations"
LOG_STREAM = "arn:aws:logs:eu-west-1:123456789012:log-group:/aws/sagemaker/Endpoints/gpt-j"


def message(headers: dict[str, str], payload: bytes) -> bytes:
    """One message of AWS's event-stream encoding; all headers are strings."""
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    body = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return body + struct.pack("!I", zlib.crc32(body))


def payload_part(data: bytes) -> bytes:
    """An event with a piece of the container's answer."""
    headers = {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }
    return message(headers, data)


def exception(kind: str, **members: str) -> bytes:
    """An error within a stream, for example ``ModelStreamError``."""
    headers = {":message-type": "exception", ":exception-type": kind, ":content-type": "application/json"}
    return message(headers, json.dumps(members).encode())


@dataclass(frozen=True)
class Answer:
    """What the runtime answers.

    Attributes:
        status: HTTP's.
        pieces: The body, chunk by chunk.
        headers: Beside the content type.
    """

    status: int
    pieces: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)


def error(status: int, kind: str, **members: object) -> Answer:
    """An error as AWS's JSON services send it."""
    return Answer(status, (json.dumps(members).encode(),), {"x-amzn-errortype": kind})


def model_error(status: int, body: str) -> Answer:
    """The container answered with an error."""
    told = f'Received client error ({status}) from primary with message "{body}". See https://... for more'
    return error(
        424,
        "ModelError",
        Message=told,
        OriginalStatusCode=status,
        OriginalMessage=body,
        LogStreamArn=LOG_STREAM,
    )


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    endpoint: str
    operation: str
    body: bytes
    headers: dict[str, str]


Answers = Callable[[Asked], Answer]


def passing_on(port: int, piece_bytes: int = 7) -> Answers:
    """Ask a container as an endpoint does; streams are cut into parts of a size that respects nothing."""

    def answer(asked: Asked) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_TIMEOUT_S)
        with contextlib.closing(connection):
            kind = {"Content-Type": asked.headers.get("content-type", "application/json")}
            connection.request("POST", "/invocations", asked.body, kind)
            response = connection.getresponse()
            body = response.read()
        if response.status != 200:
            return model_error(response.status, body.decode())
        if asked.operation == WHOLE:
            return Answer(200, (body,))
        parts = (body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes))
        return Answer(200, tuple(payload_part(part) for part in parts))

    return answer


@dataclass
class Runtime:
    """The running server.

    Attributes:
        url: For ``AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME``.
        asked: What came in so far.
        answer: What is answered; tests set it.
        hung_up: A client went away before it had all.
    """

    url: str
    asked: list[Asked]
    answer: Answers
    hung_up: threading.Event
    go_on: threading.Event


@contextlib.contextmanager
def running(answer: Answers) -> Iterator[Runtime]:
    """A runtime on a free port of the loopback interface."""
    runtime = Runtime("", [], answer, threading.Event(), threading.Event())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            _, _, endpoint, operation = unquote(self.path).split("/")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            assert headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
            runtime.asked.append(Asked(endpoint, operation, body, headers))
            self._send(runtime.answer(runtime.asked[-1]))

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            kind = "application/vnd.amazon.eventstream" if answer.status == 200 else "application/json"
            for name, value in {"Content-Type": kind, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                for piece in answer.pieces:
                    self._send_piece(piece)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                runtime.hung_up.set()

        def _send_piece(self, piece: bytes) -> None:
            if piece == WAIT:
                runtime.go_on.wait(WAIT_TIMEOUT_S)
            elif piece == CUT:
                self.close_connection = True
                raise ConnectionError
            else:
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()

    with serving(Handler) as server:
        runtime.url = server.url
        try:
            yield runtime
        finally:
            runtime.go_on.set()


WAIT, CUT = b"<wait>", b"<cut>"
"""Pieces that are no bytes: wait for `Runtime.go_on`, and end the connection in the middle."""
