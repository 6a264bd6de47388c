"""The endpoints that generate text: an ASGI application for each way in which a body may be read."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from gptj_serve import run_dir
from gptj_serve.errors import DeadlinePassed, Overloaded, ServingError, is_failure, release_frames
from gptj_serve.logs import log_event
from gptj_serve.request import Event, TokenEvent
from gptj_serve.serving import schemas
from gptj_serve.serving.body import beginning
from gptj_serve.serving.call import Call
from gptj_serve.serving.generation import DEADLINE, Delta, Generation
from gptj_serve.serving.http import headers as http_headers
from gptj_serve.serving.http.admission import Admission
from gptj_serve.serving.http.body import Bodies, linger, read_body
from gptj_serve.serving.http.headers import Headers
from gptj_serve.serving.http.link import CallEvents, ClientGone, EngineLink
from gptj_serve.serving.http.metrics import Metrics
from gptj_serve.serving.http.parsing import Parser
from gptj_serve.serving.http.protocol import BodyWriter
from gptj_serve.serving.parsing import LARGE_BODY_BYTES, Body
from gptj_serve.serving.schemas.schema import CONTENT_TYPE, Schema, StreamRenderer, server_sent_event
from gptj_serve.serving.service import Read, Result, Service
from gptj_serve.settings import Settings

logger = logging.getLogger(__name__)

LARGE_ANSWER_TOKENS = 1000
"""An answer that reports more tokens than these, the likely ones included, is rendered beside the loop."""
T = TypeVar("T")
Send = Callable[[dict[str, Any]], Any]


@dataclass(slots=True)
class Shared:
    """What all endpoints work with."""

    settings: Settings
    link: EngineLink
    service: Service
    admission: Admission
    metrics: Metrics
    parser: Parser
    bodies: Bodies
    warm_up_key: str


@dataclass(slots=True)
class Exchange:
    """A request and how far it has come; its time counts from the end of its head."""

    headers: Headers
    request_id: str
    arrived_s: float
    receive: Any
    send: Send
    writer: BodyWriter | None
    body: bytes = b""
    call: Call | None = None
    has_started: bool = False

    async def start(self, status: int, content_type: str, more: Mapping[str, str]) -> None:
        """Send the answer's head."""
        every = http_headers.of_every_answer(self.headers, self.request_id)
        found = {"content-type": content_type, **every, **more}
        self.has_started = True
        await self.send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(name.encode(), value.encode("latin-1")) for name, value in found.items()],
            }
        )

    async def send_body(self, body: bytes, more_body: bool = False) -> None:
        """Send the answer's body, or the next part of it."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more_body})


@dataclass(slots=True)
class InFlight:
    """A call that the engine works on.

    Attributes:
        exchange: The request that asked for it.
        call: What it asks for.
        generation: Its answers so far.
        events: What the engine says about it.
        first_token_s: When its first token came, in seconds since it arrived.
        failure: The error that is sent once everything that came before it was sent.
    """

    exchange: Exchange
    call: Call
    generation: Generation
    events: CallEvents
    first_token_s: float | None = None
    failure: ServingError | None = None


class Generate:
    """An endpoint.

    Args:
        shared: What all endpoints work with.
        read: Reads a body in the endpoint's schemas.
        errors: The schema of errors before a body has been read; None takes the one that the body looks like.
    """

    def __init__(self, shared: Shared, read: Read, errors: Schema | None = None) -> None:
        self._shared = shared
        self._read = read
        self._errors = errors

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        """Answer a request; only what the server itself has to see is raised."""
        headers = http_headers.read(scope["headers"])
        writer = scope.get("extensions", {}).get(BodyWriter.NAME, {}).get("writer")
        exchange = Exchange(
            headers, http_headers.request_id(headers), time.monotonic(), receive, send, writer
        )
        try:
            await self._answer(exchange)
        except ClientGone as gone:
            release_frames(gone)
            self._shared.metrics.cancelled()
            log_event(logger, "client_gone", "the client has gone", request_id=exchange.request_id)
        except BaseException as error:
            if not is_failure(error):
                raise
            await self._answer_error(exchange, error)

    async def _answer(self, exchange: Exchange) -> None:
        max_bytes = self._shared.settings.max_payload_mb * 1024 * 1024
        with self._shared.bodies.hold() as held:
            exchange.body = await read_body(exchange.receive, exchange.headers, max_bytes, held)
            with _Watch(exchange.receive) as watch:
                found = self._parse(exchange)
                exchange.call = found if isinstance(found, Call) else await watch.race(found)
                exchange.body = b""
                held.let_go()
                await self._generate(exchange, exchange.call, watch)

    def _parse(self, exchange: Exchange) -> Call | Coroutine[Any, Any, Call]:
        headers = exchange.headers
        limit_s = http_headers.timeout_s(headers, self._shared.settings.request_timeout_s)
        content_type, accept = headers.get("content-type"), headers.get("accept")
        body = Body(
            exchange.body,
            content_type,
            accept,
            exchange.arrived_s,
            exchange.request_id,
            headers.get("content-encoding"),
        )
        return self._shared.parser.parse(self._read, body, limit_s)

    async def _generate(self, exchange: Exchange, call: Call, watch: "_Watch") -> None:
        shared = self._shared
        stream = call.ask.stream
        limit_s = shared.settings.stream_timeout_s if stream else shared.settings.request_timeout_s
        limit_s = http_headers.timeout_s(exchange.headers, limit_s)
        # not before the schema has decided, as some answers cannot be streamed
        renderer = schemas.of(call.ask.schema).stream(call, exchange.request_id) if stream else None
        shared.admission.enter(call.num_sequences, time.monotonic())
        try:
            # the engine's ids must be unique, and clients choose theirs
            generation = shared.service.start(call, f"{exchange.request_id}#{id(exchange)}", limit_s)
            with shared.link.submit(generation.requests) as events:
                watch.break_off(events)
                flight = InFlight(exchange, call, generation, events)
                await (self._whole(flight) if renderer is None else self._stream(flight, renderer))
        finally:
            shared.admission.leave(call.num_sequences, time.monotonic())

    async def _whole(self, flight: InFlight) -> None:
        exchange, call = flight.exchange, flight.call
        flight.events.take = partial(self._collect, flight)
        while not flight.generation.done:
            self._push(flight, await flight.events.next())
            if flight.failure is not None:
                raise flight.failure
        result = self._result(flight)
        body, content_type = await rendered(self._shared.service, call, result)
        self._count(call, 200, result)
        more = http_headers.of_result(call, result)
        await exchange.start(200, content_type, {**more, "content-length": str(len(body))})
        await exchange.send_body(body)

    async def _stream(self, flight: InFlight, renderer: StreamRenderer) -> None:
        self._shared.metrics.stream_opened()
        flight.events.take = partial(self._write_through, flight, renderer)
        try:
            while not flight.generation.done:
                deltas = await self._next_deltas(flight)
                await self._send_piece(flight, b"".join(map(renderer.delta, deltas)))
                if flight.events.is_abandoned:
                    raise ClientGone  # the server would take the rest, for nobody
            result = self._result(flight)
            await self._send_piece(flight, renderer.end(result.answers), is_last=True)
            self._shared.service.log(flight.call, result)
            self._count(flight.call, 200, result)
        finally:
            self._shared.metrics.stream_closed()

    def _collect(self, flight: InFlight, events: list[Event]) -> bool:
        """Take events of a whole answer, of which nobody has to know before its end."""
        self._push(flight, events)
        return True

    def _write_through(self, flight: InFlight, renderer: StreamRenderer, events: list[Event]) -> bool:
        """Write what events add to a stream that has begun and whose client reads."""
        writer = flight.exchange.writer
        if writer is None or not writer.is_ready():
            return False
        writer.write(b"".join(map(renderer.delta, self._push(flight, events))))
        return True

    async def _next_deltas(self, flight: InFlight) -> list[Delta]:
        try:
            if flight.failure is not None:
                raise flight.failure
            return self._push(flight, await flight.events.next())
        except DeadlinePassed:
            if flight.first_token_s is None:
                raise
            return flight.generation.cut(DEADLINE)

    def _push(self, flight: InFlight, events: list[Event]) -> list[Delta]:
        """What a list of events added. A failure is kept until what came before it is sent.

        Who waits for the call's next events is woken when the call is over.
        """
        if flight.first_token_s is None and any(isinstance(event, TokenEvent) for event in events):
            flight.first_token_s = self._shared.service.now_s(flight.call)
        deltas: list[Delta] = []
        for event in events:
            try:
                delta = flight.generation.push(event)
            except ServingError as error:
                flight.failure = error
                flight.events.wake()
                break
            if delta.stop_found:
                self._shared.link.abort(event.request_id)
            if delta.token is not None or delta.finish_reason is not None:
                deltas.append(delta)
        if flight.generation.done:
            flight.events.wake()
        return deltas

    def _result(self, flight: InFlight) -> Result:
        request_id = flight.exchange.request_id
        return self._shared.service.result(flight.call, request_id, flight.generation, flight.first_token_s)

    async def _send_piece(self, flight: InFlight, piece: bytes, is_last: bool = False) -> None:
        exchange = flight.exchange
        if not exchange.has_started:
            more = http_headers.of_stream(flight.call)
            more = {**more, "cache-control": "no-store", "x-accel-buffering": "no"}
            await exchange.start(200, CONTENT_TYPE, more)
        if piece or is_last:
            await exchange.send_body(piece, more_body=not is_last)

    async def _answer_error(self, exchange: Exchange, error: BaseException) -> None:
        schema = self._schema(exchange)
        unread = isinstance(error, ServingError) and exchange.call is None and not exchange.body
        exchange.body = b""
        key = exchange.headers.get(run_dir.WARM_UP_HEADER, "")
        is_warm_up = hmac.compare_digest(key.encode(), self._shared.warm_up_key.encode())
        answer = self._shared.service.render_error(
            error, exchange.request_id, exchange.call, schema, is_logged=not is_warm_up
        )
        if isinstance(error, Overloaded):
            self._shared.metrics.refused()
        if not is_warm_up:
            self._count(exchange.call, answer.status, None)
        if exchange.has_started:
            await exchange.send_body(server_sent_event(json.loads(answer.body)))
            return
        more = {**answer.headers, "content-length": str(len(answer.body))}
        if unread:
            more["connection"] = "close"
        await exchange.start(answer.status, answer.content_type, more)
        await exchange.send_body(answer.body, more_body=unread)
        if unread:
            await linger(exchange.receive)
            await exchange.send_body(b"")

    def _schema(self, exchange: Exchange) -> Schema:
        """The schema of an error's answer."""
        if self._errors is not None:
            return self._errors
        encoding = exchange.headers.get("content-encoding")
        return schemas.guess(beginning(exchange.body, encoding, LARGE_BODY_BYTES))

    def _count(self, call: Call | None, status: int, result: Result | None) -> None:
        self._shared.metrics.finished(
            call.ask.schema if call else "unknown",
            status,
            total_s=result.total_s if result else 0.0,
            first_token_s=result.first_token_s if result else None,
            queue_s=result.queue_s if result else None,
            time_per_token_s=result.time_per_token_s if result else None,
        )


async def rendered(service: Service, call: Call, result: Result) -> tuple[bytes, str]:
    """Call `Service.render`, beside the event loop if it takes long enough to hold up all streams."""
    num_told = sum(len(answer.tokens) for answer in result.answers)
    if num_told * (1 + call.parameters.num_top_logprobs) > LARGE_ANSWER_TOKENS:
        return await asyncio.to_thread(service.render, call, result)
    return service.render(call, result)


class _Watch:
    """Breaks off what is done for a client that hangs up, while this is entered."""

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self._events: CallEvents | None = None

    def __enter__(self) -> "_Watch":
        self._task = asyncio.get_running_loop().create_task(self._wait())
        return self

    def __exit__(self, *_: object) -> None:
        self._task.cancel()

    async def race(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of some work, which is cancelled when the client goes; raises `ClientGone` then."""
        task = asyncio.get_running_loop().create_task(work)
        try:
            await asyncio.wait((task, self._task), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            task.cancel()

    def break_off(self, events: CallEvents) -> None:
        """Let a client's end break off these events from now on."""
        self._events = events
        if self._task.done():
            events.break_off(ClientGone())

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._events is not None:
            self._events.break_off(ClientGone())
