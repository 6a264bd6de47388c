"""The launcher's child processes: starts them, passes their output on, reaps and ends them.

The launcher may be PID 1. Each child leads a session of its own, so that Ctrl-C in a terminal only reaches
the launcher, and each child dies with the launcher. Children ignore SIGTERM and SIGINT, because systemd sends
those to every process at once, while the launcher decides when a child has to end, and says so by
`END_SIGNAL`. Orphans of a child (a model server's workers) become children of the launcher. What the children
print goes to our stdout; lines that are no JSON are wrapped, so that the log stays JSON.
"""

import contextlib
import ctypes
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gptj_serve.logs import log_event

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
END_SIGNAL = signal.SIGUSR1
"""The signal that tells a child to end in order; a child without a handler for it ends at once."""
SAME_STOP_S = 1.0
"""A signal to stop that comes so soon after another is the same one, which `run_local` has passed on."""

logger = logging.getLogger("gptj_serve.child")
_libc = ctypes.CDLL(None, use_errno=True)


class Stopped(Exception):
    """A SIGTERM or SIGINT has arrived."""


class ChildDied(Exception):
    """A child has ended that was not told to."""

    def __init__(self, child: "Child") -> None:
        killed = child.exit_code == -signal.SIGKILL
        why = "was killed (out of memory?)" if killed else f"ended with exit code {child.exit_code}"
        super().__init__(f"the {child.name} {why}")
        self.child = child


class Child:
    """A process that `Children.start` has started."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]") -> None:
        self.name = name
        self.pid = popen.pid
        self.exit_code: int | None = None
        self.expected_to_end = False
        self._popen = popen

    @property
    def is_running(self) -> bool:
        """Whether the process has not been reaped yet."""
        return self.exit_code is None

    def terminate(self) -> None:
        """Send `END_SIGNAL` to the process only; from now on its end is expected."""
        self.expected_to_end = True
        if self.is_running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, END_SIGNAL)

    def kill_session(self) -> None:
        """Kill the process and everything that it started and that stayed in its session."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def note_exit(self, status: int) -> None:
        """Note the status that ``waitpid`` gave; negative exit codes are signals."""
        self.exit_code = self._popen.returncode = os.waitstatus_to_exitcode(status)


class Children:
    """All children of this process and the signals that it gets; only one exists, in the main thread."""

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._stopped_s: float | None = None
        self._selector = selectors.DefaultSelector()
        self._signals, writer = os.pipe()
        for descriptor in (self._signals, writer):
            os.set_blocking(descriptor, False)
        self._selector.register(self._signals, selectors.EVENT_READ)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGCHLD, *STOP_SIGNALS):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> Child:
        """Start a process.

        Args:
            name: The child's name in the log.
            command: Program and arguments.
            env: The whole environment of the child.
            pass_fds: Descriptors that the child inherits.
        """
        popen = subprocess.Popen(
            list(command),
            env=dict(env),
            pass_fds=tuple(pass_fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_become_child,
        )
        assert popen.stdout is not None
        os.set_blocking(popen.stdout.fileno(), False)
        self._selector.register(popen.stdout, selectors.EVENT_READ, _Relay(name))
        child = Child(name, popen)
        self._children.append(child)
        return child

    def wait(self, timeout_s: float | None) -> None:
        """Sleep until something happens or for ``timeout_s``, and pass on what the children print.

        Raises:
            Stopped: SIGTERM or SIGINT came.
            ChildDied: A child has ended that was not told to.
        """
        stop = False
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._signals:
                stop = any(number in STOP_SIGNALS for number in os.read(self._signals, 4096))
            elif not key.data.read(key.fd):
                self._selector.unregister(key.fileobj)
        self._reap()
        if stop and not self._was_just_stopped():
            raise Stopped
        for child in self._children:
            if not child.is_running and not child.expected_to_end:
                child.expected_to_end = True
                raise ChildDied(child)

    def wait_for_end(self, child: Child, timeout_s: float) -> bool:
        """Wait until a child has ended; False if it has not after ``timeout_s``. Raises as `wait`."""
        until_s = time.monotonic() + timeout_s
        while child.is_running and time.monotonic() < until_s:
            self.wait(0.05)
        return not child.is_running

    def end_all(self, timeout_s: float) -> None:
        """Send `END_SIGNAL` to all, and SIGKILL to those that are left after ``timeout_s``."""
        for child in self._children:
            child.terminate()
        deadline_s = time.monotonic() + timeout_s
        for child in self._children:
            with contextlib.suppress(Stopped):
                self.wait_for_end(child, deadline_s - time.monotonic())
        for child in self._children:
            child.kill_session()
        until_s = time.monotonic() + 2
        while _has_children() and time.monotonic() < until_s:
            with contextlib.suppress(Stopped):
                self.wait(0.02)

    def _was_just_stopped(self) -> bool:
        now_s = time.monotonic()
        if self._stopped_s is not None and now_s - self._stopped_s < SAME_STOP_S:
            return True
        self._stopped_s = now_s
        return False

    def _reap(self) -> None:
        """Collect every process that has ended, ours and orphans alike."""
        by_pid = {child.pid: child for child in self._children}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in by_pid:
                by_pid[pid].note_exit(status)


class _Relay:
    """Passes a child's output on, line by line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._rest = b""

    def read(self, descriptor: int) -> bool:
        """Pass on what can be read; False at the end of the output."""
        try:
            chunk = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if not chunk and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            self._pass_on(line)
        return bool(chunk)

    def _pass_on(self, line: bytes) -> None:
        if line.startswith(b"{") and line.rstrip().endswith(b"}"):
            # that nobody reads the log any more is no reason to end in disorder
            with contextlib.suppress(OSError):
                sys.stdout.buffer.write(line + b"\n")
                sys.stdout.buffer.flush()
        elif line.strip():
            text = line.decode("utf-8", "replace").rstrip()
            fields: dict[str, Any] = {"from": self._name}
            log_event(logger, "child_output", text, **fields)


def die_with_parent(number: int) -> None:
    """Let the kernel send this process a signal when its parent dies.

    This is for ``preexec_fn``, between fork and exec, and only where the parent has no threads.
    """
    _libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


def _become_child() -> None:
    die_with_parent(signal.SIGKILL)
    # blocked and ignored: Java unblocks signals, and Python's servers set handlers for ignored ones
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
