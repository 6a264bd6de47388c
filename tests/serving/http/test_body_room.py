"""Bodies that are too large together."""

import asyncio
from typing import Any

import pytest

from gptj_serve.errors import Overloaded
from gptj_serve.serving.http import body
from gptj_serve.serving.http.body import Bodies, read_body

LIMIT = 100


def receiver(*pieces: bytes, ends: bool) -> Any:
    """ASGI's ``receive`` of a client that sends these pieces, and then no more or nothing for long."""
    left = list(pieces)

    async def receive() -> Any:
        if not left:
            await asyncio.sleep(100)
        piece = left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(left) or not ends}

    return receive


def test_the_largest_unfinished_body_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the small one beside it, nor one that is whole and being read."""
    monkeypatch.setattr(body, "MAX_BODIES_BYTES", 0)
    bodies = Bodies(LIMIT)

    async def read(*pieces: bytes, ends: bool) -> bytes:
        with bodies.hold() as held:
            return await read_body(receiver(*pieces, ends=ends), {}, LIMIT, held)

    async def test() -> None:
        with bodies.hold() as held:
            whole = await read_body(receiver(b"w" * 90, ends=True), {}, LIMIT, held)
            large, small = (asyncio.create_task(read(b"x" * n, ends=False)) for n in (70, 10))
            for _ in range(9):
                await asyncio.sleep(0)
            assert await read(b"y" * 16, b"y" * 15, ends=True) == b"y" * 31
            with pytest.raises(Overloaded, match="try again later"):
                await large
            assert not small.done()
            small.cancel()
            assert len(whole) == 90
        assert await read(b"z" * LIMIT, ends=True) == b"z" * LIMIT

    asyncio.run(test())


def test_a_client_that_is_alone_always_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_BODIES_BYTES", 0)

    async def test() -> None:
        with Bodies(LIMIT).hold() as held:
            assert len(await read_body(receiver(b"a" * LIMIT, ends=True), {}, LIMIT, held)) == LIMIT

    asyncio.run(test())
