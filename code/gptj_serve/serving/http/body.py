"""Reads a request's body under limits, before anything of it is kept."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gptj_serve.errors import BadRequest, Overloaded, PayloadTooLarge
from gptj_serve.serving.http.headers import Headers
from gptj_serve.serving.http.link import ClientGone

LINGER_S = 2.0
MAX_LINGER_BYTES = 256 * 1024 * 1024
MAX_BODIES_BYTES = 64 * 1024 * 1024
READ_TIMEOUT_S = 10.0
"""How many seconds after its headers a body has to be here before the connection is closed."""


class Bodies:
    """All bodies that are here and not parsed yet, whose size is bounded together.

    If a new piece does not fit, the largest body that is still coming in is given up, so that small bodies do
    not pay for large ones.

    Args:
        max_bytes: The largest size of a body; two of them always fit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max(MAX_BODIES_BYTES, 2 * max_bytes)
        self._held: set[Held] = set()

    @contextlib.contextmanager
    def hold(self) -> Iterator["Held"]:
        """A body that takes its part of the room while this is entered."""
        held = Held(self)
        self._held.add(held)
        try:
            yield held
        finally:
            held.let_go()  # also for an error that is being answered: it keeps what has raised it
            self._held.discard(held)

    def make_room(self) -> None:
        """Give up bodies until the others fit."""
        while sum(held.num_bytes for held in self._held) > self._max_bytes:
            coming = [held for held in self._held if held.reading is not None]
            if not coming:
                return
            max(coming, key=lambda held: held.num_bytes).give_up()


@dataclass(slots=True, eq=False)
class Held:
    """A body.

    Attributes:
        bodies: All bodies, of which it is one.
        num_bytes: How many bytes have come so far.
        pieces: The pieces that have come.
        reading: The task that reads it; None when it is whole or has been given up.
    """

    bodies: Bodies
    num_bytes: int = 0
    pieces: list[bytes] = field(default_factory=list)
    reading: asyncio.Task[bytes] | None = None

    def add(self, piece: bytes) -> None:
        """Add a piece that has come."""
        self.pieces.append(piece)
        self.num_bytes += len(piece)
        self.bodies.make_room()

    def let_go(self) -> None:
        """Release its room, as it was read, or nobody wants it."""
        self.num_bytes = 0
        self.pieces.clear()

    def give_up(self) -> None:
        """Stop reading it."""
        assert self.reading is not None
        self.let_go()
        self.reading.cancel()
        self.reading = None


async def read_body(receive: Any, headers: Headers, max_bytes: int, held: Held) -> bytes:
    """Read the whole body, as it was sent.

    Args:
        receive: ASGI's function.
        headers: The request's headers.
        max_bytes: The largest size of what may come.
        held: The body's part of the room for all bodies.

    Raises:
        PayloadTooLarge: It is too large by its ``Content-Length``, before anything is read, or by what came.
        BadRequest: It did not come in time.
        Overloaded: All bodies together are too large.
        ClientGone: The client hung up.
    """
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(int(declared), max_bytes)
    held.reading = asyncio.ensure_future(_read(receive, max_bytes, held))
    try:
        return await asyncio.wait_for(held.reading, READ_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise BadRequest(f"the body did not come within {READ_TIMEOUT_S:g} s") from None
    except asyncio.CancelledError:
        if held.reading is None:
            raise Overloaded("too many large bodies come at once; try again later") from None
        raise
    finally:
        held.reading = None


async def _read(receive: Any, max_bytes: int, held: Held) -> bytes:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        held.add(message.get("body", b""))
        if held.num_bytes > max_bytes:
            raise too_large(held.num_bytes, max_bytes)
        if not message.get("more_body", False):
            body = b"".join(held.pieces)
            held.pieces.clear()
            return body


async def linger(receive: Any) -> None:
    """Read and drop what still comes for a while: a client that is cut off while sending reads no answer."""
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_discard(receive), LINGER_S)


async def _discard(receive: Any) -> None:
    num_bytes = 0
    while num_bytes < MAX_LINGER_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def too_large(num_bytes: int, max_bytes: int) -> PayloadTooLarge:
    """The error for a body over the limit."""
    return PayloadTooLarge(f"the body has {num_bytes} bytes or more; at most {max_bytes} are read")
