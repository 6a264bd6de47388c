"""Connects the socket to the step loop: messages go in, and events come out of steps."""

import queue
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from gptj_serve import wire
from gptj_serve.engine.scheduler import Scheduler
from gptj_serve.engine.server import EngineServer, Gone, Message
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.errors import ServingError, Unavailable
from gptj_serve.request import EndEvent, EngineStats, Event


class Engine:
    """Runs until it is told to drain and everything that it accepted has ended.

    Args:
        server: The socket.
        scheduler: The scheduler that the step loop runs.
        step_loop: Runs the steps.
        drain_timeout_s: After `drain`, running sequences that take longer fail with `Unavailable`.
    """

    def __init__(
        self,
        server: EngineServer,
        scheduler: Scheduler[Any],
        step_loop: StepLoop[Any],
        drain_timeout_s: float,
    ) -> None:
        self._server = server
        self._scheduler = scheduler
        self._step_loop = step_loop
        self._drain_timeout_s = drain_timeout_s
        self._drain = False
        self._drain_by_s = float("inf")
        self._moved_s = time.monotonic()

    def stats(self) -> EngineStats:
        """What the engine does now. Other threads may call this; the figures may be a step apart."""
        scheduler, counters = self._scheduler, self._scheduler.counters
        return EngineStats(
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            num_steps=self._step_loop.num_steps,
            step_age_s=time.monotonic() - self._moved_s,
            num_prompt_tokens=counters.prompt_tokens,
            num_generated_tokens=counters.generated_tokens,
            num_finished=counters.finished,
            num_cancelled=counters.cancelled,
            num_failed=counters.failed,
            num_preempted=counters.preempted,
            cache_tokens=scheduler.num_cache_tokens,
            cache_capacity_tokens=scheduler.cache_capacity_tokens,
            is_draining=self._drain,
        )

    def drain(self) -> None:
        """Accept nothing more and finish what is there; may be called from a signal handler."""
        self._drain = True
        self._server.inbox.put(None)

    def close(self) -> None:
        """Send what is still to be sent, and end the connections."""
        self._server.close()

    def run(self) -> None:
        """Serve until drained. Raises BackendDead when the backend cannot go on."""
        wait_s = 0.0
        while True:
            self._read_inbox(wait_s)
            if self._drain and self._is_drained():
                return
            self._moved_s = time.monotonic()
            events, wait = self._step_loop.step()
            self._moved_s = time.monotonic()
            self._report(events)
            wait_s = 0.0 if wait is None else self._wait_s(wait.until_s)

    def _wait_s(self, until_s: float | None) -> float:
        # one second at most, because a deadline may pass while nothing runs
        wake_s = min(until_s if until_s is not None else float("inf"), self._drain_by_s)
        return max(0.0, min(1.0, wake_s - time.monotonic()))

    def _read_inbox(self, wait_s: float) -> None:
        """Handle all messages that have come; if there are none, wait for the first."""
        try:
            message = self._server.inbox.get(timeout=wait_s) if wait_s else self._server.inbox.get_nowait()
            while True:
                if message is not None:
                    self._handle(message)
                message = self._server.inbox.get_nowait()
        except queue.Empty:
            return

    def _handle(self, message: Message) -> None:
        now_s = time.monotonic()
        if isinstance(message, wire.Submit):
            self._submit(message, now_s)
        elif isinstance(message, wire.Abort):
            self._report(self._scheduler.abort((message.connection, message.request_id), now_s))
        elif isinstance(message, Gone):
            for key in self._scheduler.held_keys():
                if key[0] == message.connection:
                    self._scheduler.abort(key, now_s)

    def _submit(self, message: wire.Submit, now_s: float) -> None:
        group = [((message.connection, request.request_id), request) for request in message.requests]
        try:
            self._scheduler.add(group, now_s)
        except ServingError as error:
            refused = [EndEvent(request.request_id, "failed", error) for request in message.requests]
            self._server.send({message.connection: wire.events(refused)})

    def _is_drained(self) -> bool:
        if self._drain_by_s == float("inf"):
            self._scheduler.close()
            self._drain_by_s = time.monotonic() + self._drain_timeout_s
        if time.monotonic() >= self._drain_by_s:
            error = Unavailable(f"the server is shutting down; no answer within {self._drain_timeout_s:g} s")
            self._report(self._scheduler.abort_all(error, time.monotonic()))
        return self._scheduler.is_idle

    def _report(self, events: Iterable[Event]) -> None:
        by_connection: defaultdict[int, list[Event]] = defaultdict(list)
        for event in events:
            by_connection[event.connection].append(event)
        if by_connection:
            self._server.send({number: wire.events(batch) for number, batch in by_connection.items()})
