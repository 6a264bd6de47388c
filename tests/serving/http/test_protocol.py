"""Connections whose clients are slow, too many, or no clients at all; over real sockets, with short times."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from gptj_serve.serving.http import protocol
from gptj_serve.serving.http.protocol import BodyWriter, LimitedProtocol

ASK = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SEND_TIMEOUT_S", 0.3)
    monkeypatch.setattr(protocol, "HEADER_TIMEOUT_S", 0.5)


class Clock:
    """A loop's clock that leaves pauses of the whole process out: no timer runs out before its time."""

    def __init__(self) -> None:
        self._now_s, self._looked_s = 0.0, time.monotonic()

    def __call__(self) -> float:
        looked_s = time.monotonic()
        # a loop that has nothing to do but wait looks again until its time has come
        self._now_s += min(looked_s - self._looked_s, 0.05)
        self._looked_s = looked_s
        return self._now_s


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        asyncio.get_running_loop().time = Clock()  # type: ignore[method-assign]
        await test()

    asyncio.run(main())


def answering(num_bytes: int) -> Any:
    """An application whose answer is so long, in one piece."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        headers = [(b"content-length", str(num_bytes).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * num_bytes})

    return app


@contextlib.asynccontextmanager
async def serving(app: Any, timeout_keep_alive: float = 5) -> AsyncIterator[tuple[int, ServerState]]:
    """The port, and what the server knows of its connections; the kernel buffers little."""
    options: Any = {"ws": "none", "lifespan": "off", "log_config": None}
    options["timeout_keep_alive"] = timeout_keep_alive
    config, state = uvicorn.Config(app, **options), ServerState()
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        server = await asyncio.get_running_loop().create_server(
            lambda: LimitedProtocol(config, state, {}), sock=listener
        )
        async with server:
            yield listener.getsockname()[1], state
        for connection in set(state.connections):
            connection.transport.abort()


@contextlib.asynccontextmanager
async def asking(port: int, data: bytes = ASK) -> AsyncIterator[socket.socket]:
    """A client's socket, with little room for what it does not read."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, data)
        yield sock


async def until(condition: Callable[[], bool]) -> float:
    now_s = asyncio.get_running_loop().time
    started_s = now_s()
    while not condition():
        assert now_s() < started_s + 5
        await asyncio.sleep(0.02)
    return now_s() - started_s


async def read_all(sock: socket.socket, pause_s: float = 0.0) -> bytes:
    """Until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while part := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1 << 14), 5):
            data += part
            await asyncio.sleep(pause_s)
    return data


@pytest.mark.parametrize("num_bytes", [50_000, 500_000])
def test_an_answer_that_nobody_takes_is_given_up(num_bytes: int) -> None:
    """Also one that is too short to make uvicorn wait."""

    async def test() -> None:
        async with serving(answering(num_bytes)) as (port, state), asking(port) as sock:
            await until(lambda: bool(state.connections))
            assert await until(lambda: not state.connections) > 0.2
            assert len(await read_all(sock)) < num_bytes

    run(test)


def test_a_slow_reader_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MIN_SENT_BYTES", 2048)

    async def test() -> None:
        ask = ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        async with serving(answering(200_000)) as (port, _), asking(port, ask) as sock:
            now_s = asyncio.get_running_loop().time
            started_s = now_s()
            data = await read_all(sock, pause_s=0.05)
            assert now_s() > started_s + 2 * protocol.SEND_TIMEOUT_S
            assert data.count(b"x") == 200_000

    run(test)


def writing(parts: Sequence[bytes], writers: list[BodyWriter]) -> Any:
    """An application whose answer has these parts, all but the last written beside `send`."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        writer = scope["extensions"][BodyWriter.NAME]["writer"]
        assert not writer.is_ready()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in parts[:-1]:
            assert writer.is_ready()
            writer.write(part)
        await send({"type": "http.response.body", "body": parts[-1]})
        assert not writer.is_ready()
        writers.append(writer)

    return app


def sending(parts: Sequence[bytes]) -> Any:
    """An application whose answer has these parts."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    return app


def test_what_is_written_beside_send_is_what_send_would_write() -> None:
    parts = [b"data: 1\n\n", b"", b"x" * 5002, b"data: 2\n\n"]
    ask = ASK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")

    async def test() -> None:
        writers: list[BodyWriter] = []
        answers = []
        for app in (writing(parts, writers), sending(parts)):
            async with serving(app) as (port, _), asking(port, ask) as sock:
                answers.append((await read_all(sock)).partition(b"\r\n\r\n")[2])
        assert answers[0] == answers[1]
        assert answers[0].startswith(b"9\r\ndata: 1\n\n\r\n138a\r\nxxx")
        assert len(writers) == 1

    run(test)


def test_nothing_is_written_beside_send_to_who_reads_too_little_or_has_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        found: list[BodyWriter] = []

        async def app(scope: Any, _receive: Any, send: Any) -> None:
            found.append(scope["extensions"][BodyWriter.NAME]["writer"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(100):
                if found[0].is_ready():
                    found[0].write(b"x" * 10_000)
            await send({"type": "http.response.body", "body": b"rest"})

        async with serving(app) as (port, state), asking(port) as sock:
            await until(lambda: bool(found) and not found[0].is_ready())
            (connection,) = state.connections
            num_unsent = connection.transport.get_write_buffer_size()
            assert 64 * 1024 < num_unsent < 64 * 1024 + 20_000
            sock.close()
            await until(lambda: not state.connections)
            for _ in range(10):
                found[0].write(b"too late")

    run(test)
    assert not caplog.records  # asyncio warns of who writes on


def test_an_older_client_is_answered_by_send_alone() -> None:
    async def test() -> None:
        found: list[bool] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            found.append("extensions" in scope)
            await answering(3)(scope, receive, send)

        async with serving(app) as (port, _), asking(port, b"GET / HTTP/1.0\r\n\r\n") as sock:
            assert (await read_all(sock)).endswith(b"\r\n\r\nxxx")
        assert found == [False]

    run(test)


async def refusal(port: int, data: bytes) -> tuple[int, Any]:
    async with asking(port, data) as sock:
        head, _, body = (await read_all(sock)).partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    assert "content-type: application/json" in lines
    assert not any(line.startswith("server:") for line in lines)
    return int(lines[0].split()[1]), json.loads(body)["error_type"]


LONG = b"X: " + b"a" * 40_000 + b"\r\n"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"hello\r\n\r\n", (400, "validation")),
        (ASK[:-4], (408, "timeout")),
        (b"", (408, "timeout")),
        (ASK[:-2] + LONG, (431, "validation")),
        (ASK[:-2] + LONG + b"\r\n", (431, "validation")),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n" + LONG + b"\r\nabc", (431, "validation")),
        (b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", (431, "validation")),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_refused_before_the_application(data: bytes, expected: tuple[int, str]) -> None:
    async def test() -> None:
        async with serving(answering(1)) as (port, _):
            assert await refusal(port, data) == expected

    run(test)


def test_more_connections_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits the longest makes room; where all are being answered, who comes is refused."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 2)
    may_answer = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await may_answer.wait()
        await answering(1)(scope, receive, send)

    async def test() -> None:
        async with serving(app) as (port, state), asking(port, b"") as silent, asking(port) as asked:
            await until(lambda: len(state.connections) == 2)
            async with asking(port) as also:
                assert await read_all(silent) == b""
                assert await refusal(port, ASK) == (503, "unavailable")
                may_answer.set()
                for sock in (asked, also):
                    answer = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 1000), 5)
                    assert answer.startswith(b"HTTP/1.1 200")

    run(test)


async def seconds_until_closed(sock: socket.socket) -> float:
    now_s = asyncio.get_running_loop().time
    started_s = now_s()
    await read_all(sock)
    return now_s() - started_s


def test_a_connection_that_nothing_is_asked_on_any_more() -> None:
    """Its time is that of idle connections, not that of a head."""

    async def test() -> None:
        async with serving(answering(1), timeout_keep_alive=0.2) as (port, _), asking(port) as sock:
            assert 0.15 < await seconds_until_closed(sock) < 0.45

    run(test)


@pytest.mark.parametrize("behind", [b"G", ASK[:-4]])
def test_half_a_head_behind_an_answer(behind: bytes) -> None:
    """It has the time of a head, whatever idle connections have."""

    async def test() -> None:
        async with serving(answering(1), timeout_keep_alive=100) as (port, _), asking(port) as sock:
            loop = asyncio.get_running_loop()
            assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 200")
            await loop.sock_sendall(sock, behind)
            assert (await read_all(sock)).startswith(b"HTTP/1.1 408")

    run(test)


@pytest.mark.parametrize(
    "rest", [b"Content-Length: 100\r\n\r\nx", b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: "]
)
def test_the_rest_of_a_body_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, rest: bytes) -> None:
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 0.3)

    async def test() -> None:
        data = ASK[:-2] + rest
        async with serving(answering(1), timeout_keep_alive=100) as (port, state), asking(port, data) as sock:
            assert (await read_all(sock)).startswith(b"HTTP/1.1 200")
            await until(lambda: not state.connections)

    run(test)


def test_a_request_may_end_anywhere_in_what_arrives() -> None:
    """Each of three, with a body of either kind or none, is answered once, however it is cut."""
    chunked = ASK[:-2] + b"Transfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\nX: \r\n\r\n"
    data = ASK + chunked + ASK[:-2] + b"Content-Length: 4\r\nConnection: close\r\n\r\n\r\n\r\n"

    states: list[ServerState] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        # nothing that is behind a request has reached the parser
        assert not any(connection.pipeline for connection in states[0].connections)
        while (await receive())["more_body"]:
            pass
        await answering(1)(scope, receive, send)

    async def test() -> None:
        async with serving(app) as (port, state):
            states.append(state)
            for cut in range(1, len(data)):
                async with asking(port, data[:cut]) as sock:
                    await asyncio.sleep(0.002)
                    await asyncio.get_running_loop().sock_sendall(sock, data[cut:])
                    assert (await read_all(sock)).count(b"HTTP/1.1 200") == 3, cut

    run(test)


def test_a_client_that_has_gone_is_told_from_one_that_says_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LOOK_S", 0.02)
    gone, may_answer = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        ends = asyncio.ensure_future(receive())
        await asyncio.wait([ends, asyncio.ensure_future(may_answer.wait())], return_when="FIRST_COMPLETED")
        if ends.done():
            gone.set()
        else:
            ends.cancel()
            await answering(1)(scope, receive, send)

    async def test() -> None:
        behind = b"x" * (protocol.MAX_WAITING_BYTES + 1000)  # so much that nothing more is read
        async with serving(app) as (port, state):
            for data in (ASK, ASK + ASK, ASK + behind):
                async with asking(port, data):
                    await until(lambda: bool(state.tasks))
                await asyncio.wait_for(gone.wait(), 5)
                gone.clear()
            async with asking(port) as sock:
                sock.shutdown(socket.SHUT_WR)
                await asyncio.sleep(0.2)
                assert not gone.is_set()
                may_answer.set()
                assert b"HTTP/1.1 200" in await read_all(sock)

    run(test)
