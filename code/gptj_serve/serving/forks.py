"""Does work in a process that is forked for it: its time is bounded, and its memory is freed at its end.

A body of megabytes becomes hundreds of megabytes of Python objects, its parsing cannot be interrupted, and a
long-running process may keep memory that it has freed. A process that ends with its work has none of these
problems. It ends earlier when its time is over, or when its client closes the connection.
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
"""What comes before a job: how many seconds it has, and its length in bytes."""
NICENESS = 19
"""Niceness of the processes, so that streams and short requests come first."""

Work = Callable[[bytes], bytes]


class WorkLost(InternalError):
    """The process ended without a result, because its time was over, or something killed it."""


def run(work: Work, job: bytes, limit_s: float) -> bytes:
    """Do a job in a fork and wait for it; this is for processes with one thread.

    Args:
        work: Turns a job into a result, and raises nothing.
        job: The job.
        limit_s: How many seconds it may take, above 0.

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
    """A process that forks a process for each job. It must be made before there are threads or connections.

    Args:
        work: See `run`.
    """

    def __init__(self, work: Work) -> None:
        self._socket, theirs = socket.socketpair()
        if os.fork() == 0:
            self._socket.close()
            _serve(theirs, work)
        theirs.close()

    async def run(self, parts: Sequence[bytes], limit_s: float) -> bytes:
        """Do a job, which ends when the caller is cancelled.

        Args:
            parts: The parts of the job, which are joined there, as that would hold up the event loop here.
            limit_s: How many seconds it may take, above 0.

        Raises:
            WorkLost: There is no result.
        """
        reader, writer = await asyncio.open_unix_connection(sock=self._connect())
        result = b""
        try:
            with contextlib.suppress(ConnectionError):  # the process has ended
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
        """End the process after the jobs that run."""
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
                os.kill(os.getpid(), END_SIGNAL)  # there are threads now, so it cannot be started again
                raise WorkLost("internal error") from None
        return ours


def _serve(connections: socket.socket, work: Work) -> NoReturn:
    """Fork for jobs until the process that started this one is gone."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # jobs that run are finished while the service drains
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that the kernel reaps the processes that have ended
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
    if len(job) < num_bytes:  # the client has gone
        os._exit(1)
    _work_and_exit(sock, lambda: work(job), limit_s)


def _work_and_exit(sock: socket.socket, work: Callable[[], bytes], limit_s: float) -> NoReturn:
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # this ends the process, whatever it does
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        os.nice(NICENESS)
        gc.disable()  # nothing lives long here, and a collection of millions of objects takes seconds
        threading.Thread(target=_end_with, args=(sock,), daemon=True).start()
        sock.sendall(work())
        sys.stdout.flush()
    finally:
        os._exit(0)


def _end_with(sock: socket.socket) -> None:
    """End this process when its client has gone."""
    with contextlib.suppress(OSError):
        sock.recv(1)
    os._exit(1)
