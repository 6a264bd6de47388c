"""Reading a request's body under limits, before anything is kept of it."""

import asyncio
import contextlib
from typing import Any

from gptj_serve.errors import BadRequest, PayloadTooLarge
from gptj_serve.serving.http.headers import Headers
from gptj_serve.serving.http.link import ClientGone

LINGER_S = 2.0
MAX_LINGER_BYTES = 256 * 1024 * 1024
READ_TIMEOUT_S = 10.0
"""A body has to be here this long after its headers, or the connection is given up."""


async def read_body(receive: Any, headers: Headers, max_bytes: int) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge: By its ``Content-Length``, before anything is read, or by what came.
        BadRequest: It did not come in time.
        ClientGone: The client hung up.
    """
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_large(int(declared), max_bytes)
    try:
        return await asyncio.wait_for(_read(receive, max_bytes), READ_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise BadRequest(f"the body did not come within {READ_TIMEOUT_S:g} s") from None


async def _read(receive: Any, max_bytes: int) -> bytes:
    chunks, num_bytes = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        num_bytes += len(chunks[-1])
        if num_bytes > max_bytes:
            raise too_large(num_bytes, max_bytes)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def linger(receive: Any) -> None:
    """Throw away what still comes, for a while: a client that is cut off while it sends reads no answer."""
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
