"""An HTTP client that costs almost nothing a token: it notes when events come and parses none of them."""

import asyncio
import json
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, cast

LAST_CHUNK = b"0\r\n\r\n"
CUT_OFF = "the connection ended before the answer"
NO_HTTP = "the answer is not HTTP"


@dataclass(slots=True)
class TimedExchange:
    """One request and what came back; times are in seconds of the machine's monotonic clock.

    Attributes:
        request_id: The answer's ``x-request-id``.
        status: The answer's HTTP status.
        asked_s: When the request was sent.
        ended_s: When the answer was whole.
        event_s: When each server-sent event was whole.
    """

    asked_s: float
    request_id: str = ""
    status: int = 0
    ended_s: float = 0.0
    event_s: list[float] = field(default_factory=list)
    _pieces: list[bytes] = field(default_factory=list)
    _is_chunked: bool = False

    @property
    def body(self) -> bytes:
        """The answer, or all events of a stream. It is joined only when it is used, after the measurement."""
        raw = b"".join(self._pieces)
        return _without_chunks(raw) if self._is_chunked else raw


class Connection(asyncio.Protocol):
    """A connection, made by `connect`, that is kept and takes one request at a time.

    Attributes:
        is_open: The other side has not closed it, and will not close it after this answer.
    """

    def __init__(self, host: str) -> None:
        self.is_open = True
        self._host = host
        self._tail = b""
        self._is_stream = False
        self._num_left: int | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @staticmethod
    async def connect(port: int, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> "Connection":
        """Connect to a port of a host, by default of this machine."""
        named = host if port in (80, 443) else f"{host}:{port}"
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(lambda: Connection(named), host, port, ssl=tls)
        return made

    async def ask(self, document: Any, request_id: str) -> TimedExchange:
        """Send POST /invocations.

        Raises:
            ConnectionError: The connection ended before the answer did.
            RuntimeError: The status is not 200.
        """
        exchange = await self.exchange(document, request_id)
        if exchange.status != 200:
            raise RuntimeError(f"status {exchange.status}: {exchange.body[:300]!r}")
        return exchange

    async def exchange(self, document: Any, request_id: str, path: str = "/invocations") -> TimedExchange:
        """Send a POST; the answer may have any status.

        Raises:
            ConnectionError: The connection ended before the answer did.
        """
        body = json.dumps(document).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._done = asyncio.get_running_loop().create_future()
        self._tail, self._is_stream, self._num_left = b"", False, None
        self._exchange = TimedExchange(time.monotonic())
        if not self.is_open:
            raise ConnectionError(CUT_OFF)
        self._transport.write(head.encode() + body)
        await self._done
        return self._exchange

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.is_open = False
        if self._done.done():
            return
        exchange = self._exchange
        if exchange.status and self._num_left is None and not exchange._is_chunked:
            self._end(time.monotonic())  # an answer without a length ends so
        else:
            self._fail(CUT_OFF)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        now_s = time.monotonic()
        exchange = self._exchange
        if not exchange.status:
            self._tail += data
            if b"\r\n\r\n" not in self._tail:
                return
            try:
                data = self._read_head()
            except (ValueError, IndexError):
                self._fail(NO_HTTP)
                return
        exchange._pieces.append(data)
        # an event, or the end of the answer, may come in two pieces
        joined = self._tail + data
        if self._is_stream:  # neither JSON nor chunk borders have two line feeds in a row
            exchange.event_s += [now_s] * (self._tail[-1:] + data).count(b"\n\n")
        self._tail = joined[-len(LAST_CHUNK) - 2 :]
        if self._num_left is not None:
            self._num_left -= len(data)
        if self._num_left == 0 or (exchange._is_chunked and self._has_last_chunk()):
            self._end(now_s)

    def _has_last_chunk(self) -> bool:
        return self._tail == LAST_CHUNK or self._tail.endswith(b"\r\n" + LAST_CHUNK)

    def _end(self, now_s: float) -> None:
        if not self._done.done():  # whoever waited may have given up
            self._exchange.ended_s = now_s
            self._done.set_result(None)

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(why))

    def _read_head(self) -> bytes:
        """Parse the answer's head; returns what came after it."""
        head, _, rest = self._tail.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._exchange.status = int(first.split()[1])
        self._exchange.request_id = headers.get("x-request-id", "")
        self._exchange._is_chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        if first.startswith("HTTP/1.0") or "close" in headers.get("connection", "").lower():
            self.is_open = False
        self._is_stream = headers.get("content-type", "").startswith("text/event-stream")
        self._num_left = int(headers["content-length"]) if "content-length" in headers else None
        self._tail = b""
        return rest


def _without_chunks(raw: bytes) -> bytes:
    """The content of a body in chunks (RFC 9112, 7.1)."""
    content, place = [], 0
    while place < len(raw):
        line_end = raw.index(b"\r\n", place)
        size = int(raw[place:line_end].partition(b";")[0], 16)
        content.append(raw[line_end + 2 : line_end + 2 + size])
        place = line_end + 2 + size + 2
    return b"".join(content)
