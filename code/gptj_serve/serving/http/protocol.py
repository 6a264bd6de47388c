"""uvicorn's connection, with limits on what comes before a request exists, and on clients that are slow."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_CONNECTIONS = 1024
HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 32 * 1024

SEND_TIMEOUT_S = 30.0
MIN_SENT_BYTES = 16 * 1024
"""A client that takes less than this of what waits for it, within the timeout, loses its connection."""
SOCKET_BUFFER_BYTES = 128 * 1024
"""What the kernel is asked to buffer for a connection; Linux takes twice as much."""


class LimitedProtocol(HttpToolsProtocol):
    """A connection that nobody can hold open for long without a request, or without reading the answer.

    It is closed when a request's head is not whole within `HEADER_TIMEOUT_S` or is too long, and when its
    client does not take what waits for it. A stream waits as soon as uvicorn's 64 KiB are full.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0
    _num_unsent_bytes = 0
    _reads_head = True
    _is_refused = False

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._head_is_here()
        self._stop_send_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_refused:
            return
        if self._reads_head:
            self._num_head_bytes += len(data)
            if self._head_timer is None:
                self._await_head()
        super().data_received(data)
        if self._reads_head and self._num_head_bytes > MAX_HEADER_BYTES:
            self._refuse_long_head()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().pause_writing()
        self._start_send_timer()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._stop_send_timer()
        super().resume_writing()

    def on_message_begin(self) -> None:
        """A request's first line begins."""
        self._reads_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is here; its body is under the application's limits."""
        num_bytes = sum(len(name) + len(value) for name, value in self.headers) + len(self.url)
        self._head_is_here()
        self._num_head_bytes = 0
        if num_bytes > MAX_HEADER_BYTES:
            self._refuse_long_head()
        elif len(self.connections) > MAX_CONNECTIONS:
            self._refuse(503, "unavailable", f"there are {MAX_CONNECTIONS} connections; try again later")
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a request's body is here."""
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is here; the next one on this connection begins with a head of its own."""
        if not self._is_refused:
            super().on_message_complete()
        self._reads_head = True
        self._num_head_bytes = 0

    def on_response_complete(self) -> None:
        """The application has given the whole answer; the connection may be closing."""
        self._start_send_timer()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """The request is no HTTP."""
        self._refuse(400, "validation", msg)

    def _await_head(self) -> None:
        message = f"the request's head did not come within {HEADER_TIMEOUT_S:g} s"
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._refuse, 408, "timeout", message)

    def _head_is_here(self) -> None:
        self._reads_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _start_send_timer(self) -> None:
        """Look after a while whether the client has taken enough of what waits for it now."""
        self._stop_send_timer()
        self._num_unsent_bytes = self.transport.get_write_buffer_size()
        if self._num_unsent_bytes > 0:
            self._send_timer = self.loop.call_later(SEND_TIMEOUT_S, self._check_sending)

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_sending(self) -> None:
        num_left = self.transport.get_write_buffer_size()
        if num_left > max(0, self._num_unsent_bytes - MIN_SENT_BYTES):
            # closing would wait for the client to take the rest
            self.transport.abort()
        else:
            self._start_send_timer()

    def _refuse_long_head(self) -> None:
        message = f"the request's head has more than {MAX_HEADER_BYTES} bytes"
        self._refuse(431, "validation", message)

    def _refuse(self, status: int, kind: str, message: str) -> None:
        self._is_refused = True
        if self.transport.is_closing():
            return
        body = json.dumps({"error": message, "error_type": kind}).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._start_send_timer()
