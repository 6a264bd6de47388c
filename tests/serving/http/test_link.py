"""The front's connection to the engine: what becomes of events, with the engine's own end of the socket."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from gptj_serve import wire
from gptj_serve.engine.server import EngineServer
from gptj_serve.request import EndEvent, Event, GenerationRequest, ModelInfo, SamplingParams, TokenEvent
from gptj_serve.serving.http.link import CallEvents, EngineLink
from support.server import WAIT_TIMEOUT_S

INFO = ModelInfo("fake", "/model", 200, 4, 420, (0,))
Test = Callable[[EngineLink, Callable[..., None]], Coroutine[Any, Any, None]]


def run(path: Path, test: Test) -> None:
    """Run a test with a link, and what lets the engine say something."""
    server = EngineServer(path, INFO)
    server.start()

    async def main() -> None:
        link = await EngineLink.connect(path)
        assert link.info == INFO
        await asyncio.wait_for(
            test(link, lambda *events: server.send({0: wire.events(events)})), WAIT_TIMEOUT_S
        )
        await link.close()

    try:
        asyncio.run(main())
    finally:
        server.close()


def call(link: EngineLink, *names: str) -> CallEvents:
    return link.submit([GenerationRequest(name, (1, 2), SamplingParams(9)) for name in names])


def tokens(name: str, ids: Sequence[int]) -> list[Event]:
    return [TokenEvent(name, token_id) for token_id in ids]


def test_events_are_kept_until_they_are_asked_for(tmp_path: Path) -> None:
    async def test(link: EngineLink, say: Callable[..., None]) -> None:
        with call(link, "a", "b") as events, call(link, "c") as others:
            said = [*tokens("a", [1]), *tokens("c", [2]), *tokens("b", [3]), *tokens("unknown", [4])]
            say(*said)
            assert await others.next() == [said[1]]
            assert await events.next() == [said[0], said[2]]
            end = EndEvent("a", "length")
            say(*tokens("a", [5]), end)
            say(*tokens("a", [6]), *tokens("b", [7]))
            say(*tokens("c", [8]))
            await others.next()
            assert await events.next() == [*tokens("a", [5]), end, *tokens("b", [7])]

    run(tmp_path / "engine.sock", test)


def test_events_are_taken_while_somebody_waits_for_them(tmp_path: Path) -> None:
    async def test(link: EngineLink, say: Callable[..., None]) -> None:
        taken: list[Event] = []

        def take(events: list[Event]) -> bool:
            if events[0] == TokenEvent("a", 3):
                return False
            taken.extend(events)
            if events[0] == TokenEvent("a", 5):
                link_events.wake()
            return True

        with call(link, "a") as link_events, call(link, "b") as others:
            link_events.take = take
            say(*tokens("a", [1]), *tokens("b", [1]))
            await others.next()
            assert taken == []  # nobody waits yet
            assert await link_events.next() == tokens("a", [1])
            for token_id in (2, 3):
                say(*tokens("a", [token_id]))
            assert await link_events.next() == tokens("a", [3])
            for token_id in (4, 5):
                say(*tokens("a", [token_id]))
            assert await link_events.next() == []
            assert taken == [*tokens("a", [2]), *tokens("a", [4]), *tokens("a", [5])]
        assert link_events.take is None

    run(tmp_path / "engine.sock", test)


def test_an_error_while_events_are_taken_is_that_of_one_call(tmp_path: Path) -> None:
    panic = type("PanicException", (BaseException,), {})

    async def test(link: EngineLink, say: Callable[..., None]) -> None:
        def take(_: list[Event]) -> bool:
            raise panic("of the tokenizer's library")

        with call(link, "a") as events, call(link, "b") as others:
            events.take = take
            waiting = asyncio.ensure_future(events.next())
            await asyncio.sleep(0)
            say(*tokens("a", [1]), *tokens("b", [2]))
            with pytest.raises(panic):
                await waiting
            assert await others.next() == tokens("b", [2])
            say(*tokens("b", [3]))
            assert await others.next() == tokens("b", [3])

    run(tmp_path / "engine.sock", test)
