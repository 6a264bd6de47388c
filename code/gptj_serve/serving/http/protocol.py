"""uvicorn's connection, with limits on what comes before a request exists, and on how slowly."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 32 * 1024


class LimitedProtocol(HttpToolsProtocol):
    """Closes a connection whose request head is not whole within `HEADER_TIMEOUT_S`, or is too long."""

    _head_timer: asyncio.TimerHandle | None = None
    _num_head_bytes = 0
    _reads_head = True

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._head_is_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._reads_head:
            self._num_head_bytes += len(data)
            if self._head_timer is None:
                self._await_head()
        super().data_received(data)
        if self._reads_head and self._num_head_bytes > MAX_HEADER_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

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
            self._refuse(b"431 Request Header Fields Too Large")
            return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is here; the next one on this connection begins with a head of its own."""
        super().on_message_complete()
        self._reads_head = True
        self._num_head_bytes = 0

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._refuse, b"408 Request Timeout")

    def _head_is_here(self) -> None:
        self._reads_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(
                b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()
