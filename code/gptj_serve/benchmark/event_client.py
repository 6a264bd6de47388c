"""An HTTP client that costs next to nothing a token: it notes when events come, and parses none of them."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any, cast

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(slots=True)
class Exchange:
    """One request and what came back; times in seconds of the machine's monotonic clock.

    Attributes:
        request_id: The answer's ``x-request-id``.
        status: Its HTTP status.
        asked_s: When it was sent.
        ended_s: When the answer was whole.
        event_s: When each server-sent event was whole.
        body: Of an answer that is no stream.
    """

    asked_s: float
    request_id: str = ""
    status: int = 0
    ended_s: float = 0.0
    event_s: list[float] = field(default_factory=list)
    body: bytes = b""


class Connection(asyncio.Protocol):
    """One connection that is kept; one request at a time. Made by `connect`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._is_stream = False
        self._num_bytes: int | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @staticmethod
    async def connect(port: int) -> "Connection":
        """Connect to a port of this machine."""
        _, made = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
        return made

    async def ask(self, document: Any, request_id: str) -> Exchange:
        """POST /invocations.

        Raises:
            ConnectionError: The connection ended before the answer did.
            RuntimeError: The status is not 200.
        """
        body = json.dumps(document).encode()
        head = (
            f"POST /invocations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {request_id}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._done = asyncio.get_running_loop().create_future()
        self._buffer, self._is_stream, self._num_bytes = b"", False, None
        self._exchange = Exchange(time.monotonic())
        self._transport.write(head.encode() + body)
        await self._done
        if self._exchange.status != 200:
            raise RuntimeError(f"status {self._exchange.status}: {self._buffer[:300]!r}")
        self._exchange.body = self._buffer
        return self._exchange

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a protocol has it
        """See `asyncio.Protocol`."""
        if not self._done.done():
            self._done.set_exception(ConnectionError("the connection ended before the answer"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        now_s = time.monotonic()
        if not self._exchange.status:
            self._buffer += data
            if b"\r\n\r\n" not in self._buffer:
                return
            data = self._read_head()
        if self._is_stream:
            # an event may end in two pieces; JSON and chunk borders have no two line feeds in a row
            self._exchange.event_s += [now_s] * (self._buffer[-1:] + data).count(b"\n\n")
            self._buffer = (self._buffer + data)[-len(LAST_CHUNK) :]
            is_over = self._buffer == LAST_CHUNK
        else:
            self._buffer += data
            is_over = len(self._buffer) == self._num_bytes
        if is_over:
            self._exchange.ended_s = now_s
            self._done.set_result(None)

    def _read_head(self) -> bytes:
        """Take the answer's head apart; returns what came after it."""
        head, _, rest = self._buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._exchange.status = int(first.split()[1])
        self._exchange.request_id = headers["x-request-id"]
        self._is_stream = headers["content-type"].startswith("text/event-stream")
        self._num_bytes = int(headers["content-length"]) if "content-length" in headers else None
        self._buffer = b""
        return rest
