"""The front's side of the engine's socket for a front with an event loop: many calls share a connection."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gptj_serve import wire
from gptj_serve.errors import DeadlinePassed, Unavailable, is_failure
from gptj_serve.request import EngineStats, Event, GenerationRequest, ModelInfo
from gptj_serve.serving.client import give_up_after_s


class EngineLink:
    """A connection to the engine, made by `connect`.

    Attributes:
        info: What runs in the engine.
        stats: What the engine last said about itself.
    """

    def __init__(self, info: ModelInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats = EngineStats()
        self._info = info
        self._reader = reader
        self._writer = writer
        self._calls: dict[str, CallEvents] = {}
        self._is_open = True
        self._heard_s = time.monotonic()
        writer.write(wire.watch())
        self._task = asyncio.get_running_loop().create_task(self._listen())

    @staticmethod
    async def connect(socket_path: Path) -> "EngineLink":
        """Connect to the engine's socket; raises OSError or EOFError."""
        reader, writer = await asyncio.open_unix_connection(str(socket_path), limit=wire.MAX_LINE_BYTES)
        info = wire.read_hello(await reader.readuntil(b"\n"))
        return EngineLink(info, reader, writer)

    @property
    def info(self) -> ModelInfo:
        """What runs in the engine.

        Raises:
            Unavailable: The engine is gone.
        """
        if not self._is_open:
            raise Unavailable("the engine is gone")
        return self._info

    def trouble(self, stall_timeout_s: float) -> str | None:
        """Why no answer can be expected; None when all is well.

        Args:
            stall_timeout_s: How long the step loop may take for one step while work is waiting.
        """
        if not self._is_open:
            return "the engine is gone"
        if self.stats.is_draining:
            return "the server is shutting down"
        silent_s = time.monotonic() - self._heard_s
        has_work = bool(self._calls or self.stats.num_running or self.stats.num_waiting)
        stuck_s = max(silent_s, self.stats.step_age_s + silent_s)
        if has_work and stuck_s > stall_timeout_s:
            return f"the engine has not moved for {stuck_s:.0f} s"
        return None

    def submit(self, requests: Sequence[GenerationRequest]) -> "CallEvents":
        """Send a call's sequences; raises `Unavailable`."""
        if not self._is_open:
            raise Unavailable("the engine is gone")
        call = CallEvents(self, requests)
        for request in requests:
            self._calls[request.request_id] = call
        self._writer.write(wire.submit(requests))
        return call

    def abort(self, request_id: str) -> None:
        """Cancel a sequence, whose end is not reported."""
        if self._calls.pop(request_id, None) is not None and self._is_open:
            self._writer.write(wire.abort(request_id))

    async def close(self) -> None:
        """End the connection; the engine cancels what it still runs for it."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._heard_s = time.monotonic()
                message = wire.read_from_engine(line)
                if isinstance(message, wire.Stats):
                    self.stats = message.stats
                else:
                    self._dispatch(message)
        except (OSError, ValueError):
            pass
        finally:
            self._is_open = False
            for call in set(self._calls.values()):
                call.break_off(Unavailable("the engine is gone"))
            self._calls.clear()

    def _dispatch(self, message: wire.Events) -> None:
        events: dict[CallEvents, list[Event]] = {}
        for token in message.tokens:
            # otherwise it was aborted
            if (call := self._calls.get(token.request_id)) is not None:
                events.setdefault(call, []).append(token)
        for end in message.ends:
            if (call := self._calls.pop(end.request_id, None)) is not None:
                events.setdefault(call, []).append(end)
        for call, own in events.items():
            call.add(own)


class CallEvents:
    """The events of a call as they come. Leaving it as a context manager cancels what still runs.

    Attributes:
        take: Asked first, while somebody waits in `next`: it takes events at once, so that no task is woken
            for each token, or says that they are to be kept.
    """

    def __init__(self, link: EngineLink, requests: Sequence[GenerationRequest]) -> None:
        self.take: Callable[[list[Event]], bool] | None = None
        self._link = link
        self._ids = [request.request_id for request in requests]
        self._events: list[Event] = []
        self._error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        give_up_s = give_up_after_s(requests)
        if give_up_s is not None:
            error = DeadlinePassed("the engine does not answer")
            self._timer = self._loop.call_later(give_up_s, self.break_off, error)

    @property
    def is_abandoned(self) -> bool:
        """Whether the client has gone."""
        return isinstance(self._error, ClientGone)

    def __enter__(self) -> "CallEvents":
        return self

    def __exit__(self, *_: object) -> None:
        self.take = None  # what takes events knows them
        if self._timer is not None:
            self._timer.cancel()
        for request_id in self._ids:
            self._link.abort(request_id)

    async def next(self) -> list[Event]:
        """All events since the last time that `take` did not take; none if `wake` was called.

        Raises:
            ServingError: The engine is gone, or does not answer.
            BaseException: What `break_off` was given, or `take` has raised.
        """
        if not self._events and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if not self._events and self._error is not None:
            raise self._error
        events, self._events = self._events, []
        return events

    def add(self, events: list[Event]) -> None:
        """Events have come."""
        try:
            is_awaited = self._waiter is not None and not self._waiter.done()
            if is_awaited and self.take is not None and self.take(events):
                return
        except BaseException as error:
            if not is_failure(error):
                raise
            self.break_off(error)  # this call alone: others' events came in the same message
            return
        self._events += events
        self.wake()

    def wake(self) -> None:
        """Make `next` return."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def break_off(self, error: BaseException) -> None:
        """Make `next` raise once the events that came before have been taken."""
        if self._error is None:
            self._error = error
        self.wake()


class ClientGone(Exception):
    """The client has closed its connection, so nobody waits for the answer."""
