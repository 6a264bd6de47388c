"""The front's side of the engine's socket, which blocks and makes one call at a time."""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptj_serve import wire
from gptj_serve.errors import DeadlinePassed, Unavailable
from gptj_serve.request import EndEvent, Event, GenerationRequest, ModelInfo

CONNECT_TIMEOUT_S = 5.0
GRACE_S = 1.0
"""The engine ends a request at its deadline; a front waits this much longer before it gives up."""


class EngineClient:
    """A connection to the engine, which is made at the first use and again after a failure.

    Args:
        socket_path: The engine's Unix socket.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path
        self._connection: _Connection | None = None

    @property
    def info(self) -> ModelInfo:
        """What runs in the engine.

        Raises:
            Unavailable: The engine is gone.
        """
        return self._connected().info

    def generate(self, requests: Sequence[GenerationRequest]) -> Iterator[Event]:
        """Run the sequences of one call. Closing the iterator cancels what has not ended.

        Args:
            requests: Their ids must differ from each other and from those of other calls.

        Yields:
            Tokens as they come, and one `EndEvent` for each sequence.

        Raises:
            Unavailable: The engine is gone.
            DeadlinePassed: The engine did not answer in time.
        """
        connection = self._connected()
        pending = {request.request_id for request in requests}
        after_s = give_up_after_s(requests)
        give_up_s = None if after_s is None else time.monotonic() + after_s
        try:
            connection.socket.sendall(wire.submit(requests))
            while pending:
                connection.set_timeout_until(give_up_s)
                for event in connection.read_events():
                    if event.request_id not in pending:
                        continue  # this is of an earlier call that was given up
                    if isinstance(event, EndEvent):
                        pending.remove(event.request_id)
                    yield event
        except TimeoutError:
            self.close()
            raise DeadlinePassed("the engine does not answer") from None
        except (OSError, EOFError):
            self.close()
            raise Unavailable("the engine is gone") from None
        finally:
            for request_id in pending:
                self.abort(request_id)

    def abort(self, request_id: str) -> None:
        """Cancel a sequence, whose `EndEvent` follows; without a connection, nothing is done."""
        # whoever reads the events notices a broken connection
        with contextlib.suppress(OSError):
            if self._connection is not None:
                self._connection.socket.sendall(wire.abort(request_id))

    def close(self) -> None:
        """End the connection; the engine cancels what it still runs for it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> "_Connection":
        if self._connection is None:
            try:
                self._connection = _Connection(self._socket_path)
            except (OSError, EOFError):
                raise Unavailable("the engine is gone") from None
        return self._connection


def give_up_after_s(requests: Sequence[GenerationRequest]) -> float | None:
    """Seconds until the engine must have ended all of them; None if one has no deadline."""
    timeouts_s = [request.timeout_s for request in requests]
    if any(timeout_s is None for timeout_s in timeouts_s):
        return None
    return max(timeout_s or 0.0 for timeout_s in timeouts_s) + GRACE_S


class _Connection:
    def __init__(self, socket_path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(CONNECT_TIMEOUT_S)
        try:
            self.socket.connect(str(socket_path))
            self._reader = self.socket.makefile("rb")
            self.info = wire.read_hello(self._read())
        except BaseException:
            self.socket.close()
            raise

    def set_timeout_until(self, time_s: float | None) -> None:
        # zero would mean not to block
        self.socket.settimeout(None if time_s is None else max(0.001, time_s - time.monotonic()))

    def read_events(self) -> list[Event]:
        message = wire.read_from_engine(self._read())
        # nobody has asked for statistics
        return [*message.tokens, *message.ends] if isinstance(message, wire.Events) else []

    def close(self) -> None:
        self._reader.close()
        self.socket.close()

    def _read(self) -> bytes:
        line = self._reader.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        return line
