"""uvicorn's connection with limits on what comes before a request exists, and on slow clients."""

import asyncio
import socket
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gptj_serve.serving.body import compact
from gptj_serve.serving.http.places import Places, most_connections

MAX_CONNECTIONS = 1024
HEADER_TIMEOUT_S = 10.0
MAX_HEADER_BYTES = 32 * 1024
"""The largest head, and the most bytes of trailers or anything else in a body that is not its content."""
BODY_TIMEOUT_S = 15.0
"""How many seconds a body has from the end of its head; paths that read bodies wait less themselves."""
MAX_LENGTH_DIGITS = 20
MAX_WAITING_BYTES = 64 * 1024
"""How many bytes are read of requests that come before the previous one has been answered."""

SEND_TIMEOUT_S = 30.0
MIN_SENT_BYTES = 16 * 1024
"""A client that takes less than this of what waits for it within the timeout loses its connection."""
SOCKET_BUFFER_BYTES = 128 * 1024
"""How much the kernel is asked to buffer for a connection; Linux takes twice as much."""

PARSE_BYTES = 32 * 1024
"""How much of a connection is parsed before others have their turn, as chunks of a byte take long."""

LOOK_S = 0.1
"""Seconds between looks at a client from which nothing is read any more."""
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8
"""States of connections in Linux: it was reset; the client will send no more."""

_END = b"\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_places = Places()


class LimitedProtocol(HttpToolsProtocol):
    """A connection that nobody can hold open for long without a request, or without reading the answer.

    It is closed when a request's head or body is not whole in time or is too long, and when its client does
    not take what waits for it. A stream waits as soon as uvicorn's 64 KiB are full. When all places are
    taken, the connection that has waited the longest for a request is closed for a new one.

    One request at a time reaches the parser, up to its last byte; what comes after it stays unparsed until it
    is answered. So it is noticed when a client goes away, whatever it has sent.
    """

    flow: "_Flow"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._read_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._num_unsent_bytes = 0
        self._is_refused = False
        self._reads_head = True
        self._is_whole = True
        self._input = bytearray()
        self._parse_soon: asyncio.Handle | None = None
        self._tail = b""
        self._num_body_left = 0
        self._num_other_bytes = 0
        self._is_half_closed = False
        self._is_asked = False

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        _places.waits(self)
        self._has_place()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        _places.leaves(self)
        self._stop_read_timer()
        self._stop_send_timer()
        self._is_refused = True  # nothing of this connection is parsed any more
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_refused:
            return
        self._input += data
        self._parse()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio lets it say that the rest stays open
        """The client sends no more: it may have gone, or wait for the answer to what it has sent."""
        self._is_half_closed = self._is_answering()
        if self._is_half_closed:
            self._look_for_client()
        return self._is_half_closed

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
        self._reads_head, self._is_whole = True, False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which has no meaning here."""
        if self._reads_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request's head is here."""
        if self.parser.should_upgrade():
            return  # the head comes again without the offer
        self._reads_head, self._num_other_bytes = False, 0
        self._stop_read_timer()
        lengths = [value for name, value in self.headers if name == b"content-length"]
        if any(len(length) > MAX_LENGTH_DIGITS for length in lengths):
            self._refuse(400, "validation", f"content-length has more than {MAX_LENGTH_DIGITS} digits")
        elif not self._has_place():
            self._refuse(503, "unavailable", f"there are {MAX_CONNECTIONS} connections; try again later")
        else:
            self._num_body_left = int(lengths[0]) if lengths else 0
            self._read_timer = self.loop.call_later(BODY_TIMEOUT_S, self._give_up_body)
            super().on_headers_complete()
            if self.scope["http_version"] == "1.0":
                self.cycle.__class__ = _OldCycle
            else:
                self.scope["extensions"] = {BodyWriter.NAME: {"writer": BodyWriter(self.cycle)}}

    def on_body(self, body: bytes) -> None:
        """A part of a request's body is here."""
        self._num_other_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is here; the next one on this connection begins with a head of its own."""
        if self.parser.should_upgrade():
            return
        self._is_whole, self._reads_head, self._num_other_bytes = True, True, 0
        if self._is_refused:
            return
        self._stop_read_timer()
        super().on_message_complete()
        if self._is_answering():
            _places.leaves(self)

    def on_response_complete(self) -> None:
        """The application has given the whole answer; the connection may be closing."""
        self._start_send_timer()
        self._is_asked = False
        super().on_response_complete()
        if self.transport.is_closing():
            return
        _places.waits(self)
        self._parse()
        if self._is_half_closed and not self._is_answering():
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection if nothing was asked since an answer; begun requests have other limits."""
        if self._read_timer is None and not self._is_answering():
            super().timeout_keep_alive_handler()

    def give_up_place(self) -> None:
        """Close a connection that waits, to make room for another."""
        is_read_from = self.cycle is not None and not self.cycle.response_complete
        if is_read_from or self.transport.get_write_buffer_size() > 0:
            self.transport.abort()
        else:
            self.transport.close()

    def _has_place(self) -> bool:
        allowed = most_connections(MAX_CONNECTIONS)
        return len(self.connections) <= allowed or _places.make_room(self)

    def _is_answering(self) -> bool:
        return self._is_whole and self.cycle is not None and not self.cycle.response_complete

    def _parse(self) -> None:
        """Parse what has come for a while, then let others have their turn."""
        if self._parse_soon is not None:
            self._parse_soon.cancel()
            self._parse_soon = None
        num_left = PARSE_BYTES
        while self._has_work() and num_left > 0:
            piece = self._take_piece(num_left)
            num_left -= len(piece)
            self._feed(piece)
        if self._has_work():
            self._parse_soon = self.loop.call_soon(self._parse)
        if self.transport.is_closing():
            return
        self.flow.hold(len(self._input) > MAX_WAITING_BYTES)
        if self.flow.is_full:
            self._look_for_client()

    def _has_work(self) -> bool:
        return bool(self._input) and not (
            self._is_refused or self._is_answering() or self.transport.is_closing()
        )

    def _feed(self, piece: bytes) -> None:
        if self._reads_head and self._read_timer is None:
            self._await_head()
        self._num_other_bytes += len(piece)
        if self._reads_head and self._num_other_bytes > MAX_HEADER_BYTES:
            self._refuse_long_head()
            return
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._pass_over_offer()
        except httptools.HttpParserError:
            self._refuse(400, "validation", "Invalid HTTP request received.")
        if self._num_other_bytes > MAX_HEADER_BYTES and not self._is_refused:
            self._refuse_long_head()

    def _take_piece(self, max_bytes: int) -> bytes:
        """What has come, but at most up to where a request may end: the parser gets nothing of the next."""
        if self._num_body_left:
            length = min(self._num_body_left, len(self._input), max_bytes)
            self._num_body_left -= length
            is_end = True
        else:  # heads and chunked bodies end with an empty line, whose beginning may have come before
            seam = (self._tail + self._input[:3]).find(_END)
            end = seam - len(self._tail) if seam >= 0 else self._input.find(_END)
            is_end = seam >= 0 or end >= 0
            length = end + len(_END) if is_end else len(self._input)
            if length > max_bytes:
                length, is_end = max_bytes, False
        with memoryview(self._input) as waiting:
            piece = bytes(waiting[:length])
        del self._input[:length]
        self._tail = b"" if is_end else (self._tail + piece)[-3:]
        return piece

    def _pass_over_offer(self) -> None:
        """Read a head again without its offer of another protocol, which would end HTTP for the parser."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(405, "method_not_allowed", "CONNECT is not served")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.feed_data(b"\r\n".join(lines) + _END)

    def _look_for_client(self) -> None:
        """Ask the kernel until the answer whether a client from which nothing is read is still there.

        A client that has closed half of the connection and one that has closed all of it look alike until
        something is sent. Clients have to ignore an interim answer, and where nobody is left, it resets the
        connection.
        """
        if self._look_timer is not None:
            self._look_timer.cancel()
            self._look_timer = None
        if not self._is_answering() or self.transport.is_closing():
            return
        sock = self.transport.get_extra_info("socket")
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO)
        if state == TCP_CLOSE:
            self.transport.abort()
            return
        knows_interim = self.scope["http_version"] != "1.0" and not self.cycle.response_started
        if state == TCP_CLOSE_WAIT and knows_interim and not self._is_asked:
            self._is_asked = True
            self.transport.write(_CONTINUE)
        self._look_timer = self.loop.call_later(LOOK_S, self._look_for_client)

    def _await_head(self) -> None:
        message = f"the request's head did not come within {HEADER_TIMEOUT_S:g} s"
        self._read_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._refuse, 408, "timeout", message)

    def _give_up_body(self) -> None:
        """Give up the rest of a body that nobody waits for any more, or that its reader has not given up."""
        if self.cycle.response_complete:
            self.transport.close()
            self._start_send_timer()
        else:
            self.transport.abort()

    def _stop_read_timer(self) -> None:
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    def _start_send_timer(self) -> None:
        """Check after a while whether the client has taken enough of what waits for it now."""
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
        if not self._reads_head and self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # the application may be about to answer
            return
        body = compact({"error": message, "error_type": kind})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._start_send_timer()


class BodyWriter:
    """An extension of ASGI that writes parts of an answer's body without the task that `send` would need.

    Args:
        cycle: The answer.
    """

    NAME = "gptj_serve.body_writer"

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def is_ready(self) -> bool:
        """Whether a part can be written now: the head of a chunked answer was, and the client reads."""
        cycle = self._cycle
        return cycle.chunked_encoding is True and not (cycle.response_complete or cycle.flow.write_paused)

    def write(self, part: bytes) -> None:
        """Write a part if the client is still there; more parts follow."""
        if part and not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))


class _OldCycle(RequestResponseCycle):
    """An answer to an HTTP/1.0 client, which knows no chunks: an unknown length ends the connection."""

    _is_open_ended = False

    async def send(self, message: Any) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start":
            self._is_open_ended = all(name != b"content-length" for name, _ in message.get("headers", ()))
            if self._is_open_ended:
                self.chunked_encoding = False
        elif self._is_open_ended:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class _Flow(FlowControl):
    """Decides whether a connection is read, which it is not while its requests wait, whatever uvicorn says.

    Attributes:
        is_full: Whether so much waits that no more is read.
    """

    is_full = False

    def hold(self, is_full: bool) -> None:
        """Say whether too much waits."""
        self._change(is_full, self.read_paused)

    def pause_reading(self) -> None:
        """uvicorn has enough of a body."""
        self._change(self.is_full, True)

    def resume_reading(self) -> None:
        """uvicorn wants more."""
        self._change(self.is_full, False)

    def _change(self, is_full: bool, read_paused: bool) -> None:
        was_paused = self.is_full or self.read_paused
        self.is_full, self.read_paused = is_full, read_paused
        if was_paused != (is_full or read_paused):
            (self._transport.resume_reading if was_paused else self._transport.pause_reading)()
