"""Work in a process of its own, forked for it: bounded in time, and all its memory goes back at its end.

A body of megabytes becomes hundreds of them as Python's objects, its parsing cannot be interrupted, and what
a long-running process has freed it may keep. A process that ends with its work has none of these troubles.
It ends sooner when its time is over, or when whoever asked closes the connection.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from gptj_serve.children import END_SIGNAL
from gptj_serve.errors import InternalError
from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)

_HEAD = struct.Struct("!dQ")
"""Before a job: seconds for it, and its length in bytes."""
NICENESS = 19
"""Streams and short requests come first."""

Work = Callable[[bytes], bytes]


class WorkLost(InternalError):
    """The process ended without a result: its time was over, or something killed it."""


def run(work: Work, job: bytes, limit_s: float) -> bytes:
    """Do one job apart and wait for it. For a process that has one thread.

    Args:
        work: What turns a job into a result; it raises nothing.
        job: What it is given.
        limit_s: Seconds, above 0.

    Raises:
        WorkLost: There is no result.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _work_and_exit(theirs, lambda: work(job), limit_s)
        theirs.close()
        try:
            result = b"".join(iter(lambda: ours.recv(1 << 20), b""))
        finally:
            ours.close()
            os.waitpid(pid, 0)
    if not result:
        raise WorkLost("internal error")
    return result


class ForkServer:
    """A process that forks one process for each job. To be made before there are threads, or connections.

    Args:
        work: As for `run`.
    """

    def __init__(self, work: Work) -> None:
        self._socket, theirs = socket.socketpair()
        if os.fork() == 0:
            self._socket.close()
            _serve(theirs, work)
        theirs.close()

    async def run(self, parts: Sequence[bytes], limit_s: float) -> bytes:
        """Do one job; a caller who is cancelled ends it.

        Args:
            parts: What ``work`` is given, which joins them: here it would hold up the event loop.
            limit_s: Seconds, above 0.

        Raises:
            WorkLost: There is no result.
        """
        reader, writer = await asyncio.open_unix_connection(sock=self._connect())
        result = b""
        try:
            with contextlib.suppress(ConnectionError):  # it has ended
                writer.write(_HEAD.pack(limit_s, sum(map(len, parts))))
                for part in parts:
                    writer.write(part)
                await writer.drain()
                result = await reader.read()
        finally:
            writer.close()
        if not result:
            raise WorkLost("internal error")
        return result

    def close(self) -> None:
        """End the process; jobs that run are finished."""
        self._socket.close()

    def _connect(self) -> socket.socket:
        """A connection to a new process."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._socket, [b"\0"], [theirs.fileno()])
            except OSError:
                ours.close()
                message = "the process that parses large bodies is gone; the front ends"
                log_event(logger, "parser_gone", message, level=logging.ERROR)
                os.kill(os.getpid(), END_SIGNAL)  # it cannot be had again: now there are threads
                raise WorkLost("internal error") from None
        return ours


def _serve(connections: socket.socket, work: Work) -> NoReturn:
    """What the forking process does, until whoever started it is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # jobs that run are finished while the service drains
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets those that have ended
    with contextlib.suppress(OSError):
        while (found := socket.recv_fds(connections, 1, 1))[0]:
            sock = socket.socket(fileno=found[1][0])
            if os.fork() == 0:
                connections.close()
                _take_and_exit(sock, work)
            sock.close()
    os._exit(0)


def _take_and_exit(sock: socket.socket, work: Work) -> NoReturn:
    try:
        with sock.makefile("rb") as received:
            limit_s, num_bytes = _HEAD.unpack(received.read(_HEAD.size))
            job = received.read(num_bytes)
    except (OSError, struct.error):
        os._exit(1)
    if len(job) < num_bytes:  # whoever asked has gone
        os._exit(1)
    _work_and_exit(sock, lambda: work(job), limit_s)


def _work_and_exit(sock: socket.socket, work: Callable[[], bytes], limit_s: float) -> NoReturn:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, whatever it does
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        os.nice(NICENESS)
        gc.disable()  # nothing lives long here, and looking through millions of objects takes seconds
        threading.Thread(target=_end_with, args=(sock,), daemon=True).start()
        sock.sendall(work())
        sys.stdout.flush()
    finally:
        os._exit(0)


def _end_with(sock: socket.socket) -> None:
    """End this process when whoever asked has gone."""
    with contextlib.suppress(OSError):
        sock.recv(1)
    os._exit(1)
