"""Starts the processes that a measurement needs, and ends them with all that they have started."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from gptj_serve import safe_path
from gptj_serve.errors import StartupError
from gptj_serve.host.ports import check_port_is_free

END_TIMEOUT_S = 10.0
TETHER = (
    "import ctypes, os, signal, sys; PR_SET_PDEATHSIG = 1; "
    "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)
"""Becomes the command given to it, and gets SIGTERM when we die, since it would keep its GPU. A `preexec_fn`
would do the same, but is not safe in a process with threads."""


@contextlib.contextmanager
def running(
    command: Sequence[str],
    env: Mapping[str, str],
    *,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO[bytes] | None = subprocess.DEVNULL,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    end_timeout_s: float = END_TIMEOUT_S,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process in a session of its own: Ctrl-C reaches only us, and we end the process.

    Args:
        command: Program and arguments.
        env: The whole environment. Relative paths in it are made absolute, as the process starts in ``/``.
        stdin, stdout, stderr: As `subprocess.Popen` takes them.
        pass_fds: Descriptors that the process inherits.
        end_timeout_s: How many seconds it has from SIGTERM to SIGKILL.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TETHER, *command],
        env=safe_path.environment(env),
        cwd=safe_path.ROOT,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(end_timeout_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def free_port(first: int = 20000, last: int = 32000) -> int:
    """A port of the loopback interface, below the ephemeral ones, on which nobody listens.

    It is reserved until this process ends: a server takes seconds to listen, and another process that asks
    meanwhile gets another port.

    Args:
        first: The lowest port that may be taken.
        last: The highest port that may be taken.
    """
    while True:
        port = random.randint(first, last)
        with socket.socket(socket.AF_UNIX) as mark, contextlib.suppress(OSError, StartupError):
            mark.bind(f"\0gptj-serve port {port}")
            check_port_is_free("127.0.0.1", port)
            mark.detach()  # the socket stays open and reserves the port
            return port
