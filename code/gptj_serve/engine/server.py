"""The engine's side of the Unix socket, which has a thread of its own so that a long step delays no message.

The step loop reads `inbox` and calls `send`; nothing else is shared between the two threads.
"""

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptj_serve import wire
from gptj_serve.logs import log_event
from gptj_serve.request import EngineStats, ModelInfo

logger = logging.getLogger(__name__)

MAX_UNSENT_BYTES = 32 * 1024 * 1024
"""A front that leaves more than this unread is cut off, so that it does not hold the engine's memory."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A front's connection has ended, so nobody waits for its sequences."""

    connection: int


Message = wire.Submit | wire.Abort | Gone


class EngineServer:
    """Accepts fronts on a Unix socket.

    Args:
        socket_path: Where to listen; its directory must be private.
        info: Sent to every front that connects.

    Attributes:
        inbox: What the fronts said, oldest first.
    """

    def __init__(self, socket_path: Path, info: ModelInfo) -> None:
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._socket_path = socket_path
        self.stats: Callable[[], EngineStats] = EngineStats
        """Called in the socket's thread for what watching fronts are told."""
        self._info = info
        self._numbers = itertools.count()
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._watches: dict[int, asyncio.Task[None]] = {}
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-socket", daemon=True)

    def start(self) -> None:
        """Listen. Raises OSError if the socket cannot be made."""
        self._thread.start()
        start = asyncio.start_unix_server(self._serve, str(self._socket_path), limit=wire.MAX_LINE_BYTES)
        self._listener = asyncio.run_coroutine_threadsafe(start, self._loop).result()

    def send(self, lines: Mapping[int, bytes]) -> None:
        """Queue a line for each of the given connections; those that have gone are ignored."""
        self._loop.call_soon_threadsafe(self._write, dict(lines))

    def close(self) -> None:
        """Send what is queued, end all connections and stop the thread."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = next(self._numbers)
        self._writers[connection] = writer
        writer.write(wire.hello(self._info))
        try:
            while line := await reader.readline():
                message = wire.read_from_front(line)
                if isinstance(message, wire.Watch):
                    if connection not in self._watches:
                        self._watches[connection] = self._loop.create_task(self._watch(connection))
                else:
                    message.connection = connection
                    self.inbox.put(message)
        except (ValueError, OSError) as error:
            cut = f"a front's connection was cut: {type(error).__name__}"
            log_event(logger, "connection_cut", cut, level=logging.WARNING)
        finally:
            self._writers.pop(connection, None)
            if watch := self._watches.pop(connection, None):
                watch.cancel()
            self.inbox.put(Gone(connection))
            writer.close()

    async def _watch(self, connection: int) -> None:
        while True:
            self._write({connection: wire.stats(self.stats())})
            await asyncio.sleep(wire.STATS_INTERVAL_S)

    def _write(self, lines: dict[int, bytes]) -> None:
        for connection, line in lines.items():
            writer = self._writers.get(connection)
            if writer is None:
                continue
            writer.write(line)
            if writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                message = "a front does not read its answers: its connection is cut"
                log_event(logger, "connection_cut", message, level=logging.WARNING)
                writer.transport.abort()

    async def _close(self) -> None:
        if self._listener is not None:
            self._listener.close()
        watches = list(self._watches.values())
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        for writer in list(self._writers.values()):
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(writer.drain(), timeout=1)
            writer.close()
        self._socket_path.unlink(missing_ok=True)
