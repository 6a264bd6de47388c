"""Starts ``serve`` as a user would and talks to it from outside: HTTP, signals, its log."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from gptj_serve import demo, wire
from gptj_serve.benchmark.targets.processes import free_port
from gptj_serve.request import EngineStats

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120
WAIT_TIMEOUT_S = 60
"""For what is sure to come: only what never comes takes so long, whatever else the machine does."""
END_TIMEOUT_S = 10
"""For the end of all: `serve` gives its children 4 s at most, the rest is for what else the machine does."""


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: dict[str, str]
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The generated text of an answer to a single Hugging Face request."""
        assert self.status == 200, self.body
        text = self.json[0]["generated_text"]
        assert isinstance(text, str)
        return text


class Client:
    """Talks HTTP to a service on a port of the loopback interface.

    Attributes:
        port: Where it listens.
        lines: What it has logged so far.
    """

    port: int
    lines: list[str]

    @property
    def log(self) -> str:
        """All that the service has printed."""
        return "".join(self.lines)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one kind of event."""
        return [line for line in self.records() if line.get("event") == name]

    def records(self) -> list[dict[str, Any]]:
        """The log lines that are JSON."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    def wait_for(self, event: str, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
        """Wait until an event has been logged."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.events(event):
                return self.events(event)[0]
            assert self.exit_code() is None, f"serve ended with {self.exit_code()}:\n{self.log}"
            time.sleep(0.05)
        raise AssertionError(f"no event {event!r} within {timeout_s} s:\n{self.log}")

    def exit_code(self) -> int | None:
        """The service's exit code; None while it runs."""
        raise NotImplementedError

    def get(self, path: str, method: str = "GET") -> Answer:
        return self._request(method, path, None, {})

    def post(
        self, body: bytes | str, content_type: str | None = "application/json", **headers: str
    ) -> Answer:
        """POST /invocations."""
        data = body.encode() if isinstance(body, str) else body
        content = {"Content-Type": content_type} if content_type else {}
        return self._request("POST", "/invocations", data, content | headers)

    def generate(self, prompt: Any, **parameters: Any) -> Answer:
        """Ask in the Hugging Face schema."""
        return self.post(json.dumps({"inputs": prompt, "parameters": parameters}))

    def _request(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        started_s = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2 * WAIT_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            low = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, content, low, time.monotonic() - started_s)


class Server(Client):
    """One running ``serve`` with the demo model, on a free port of the loopback interface.

    It has the fused engine where nothing else is asked for: on a CPU it starts in half of the other's time.
    """

    def __init__(
        self,
        module: str = "gptj_serve",
        *,
        command: Sequence[str | Path] = (),
        cwd: Path = ROOT,
        **env: str,
    ) -> None:
        self.port = free_port()
        self.front = env.get("GPTJ_FRONT", "mms")
        clean = {
            key: value for key, value in os.environ.items() if not key.startswith(("GPTJ_", "SAGEMAKER_"))
        }
        self.process = subprocess.Popen(
            command or [sys.executable, "-m", module],
            env={
                **clean,
                "GPTJ_MODEL_DIR": str(demo.MODEL_DIR),
                "GPTJ_HOST": "127.0.0.1",
                "GPTJ_PORT": str(self.port),
                "OMP_NUM_THREADS": "1",
                "GPTJ_ENGINE": "fused",
                "GPTJ_MAX_BATCH_SIZE": "4",  # the model server has a process for each
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
        )
        self.lines: list[str] = []
        self._is_read = True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.decode())
            if not self._is_read:
                self.process.stdout.close()
                return

    def stop_reading(self) -> None:
        """Be no longer there for what it prints, as a terminal that was closed."""
        self._is_read = False
        self.generate("In", max_new_tokens=1)  # which is logged
        self._reader.join(WAIT_TIMEOUT_S)

    def exit_code(self) -> int | None:
        return self.process.poll()

    def wait_until_ready(self) -> "Server":
        self.wait_for("ready")
        return self

    def descendants(self) -> list[psutil.Process]:
        """All processes that the service has started and that still run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def processes_of(self, word: str) -> list[psutil.Process]:
        """The descendants that have a word in their command."""
        found = []
        for process in self.descendants():
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in process.cmdline():
                    found.append(process)
        return found

    def engine(self) -> psutil.Process:
        """The engine process."""
        (engine,) = self.processes_of("gptj_serve.engine")
        return engine

    @contextlib.contextmanager
    def engine_stopped(self) -> Iterator[None]:
        """The engine stands still; it goes on at exit."""
        engine = self.engine()
        engine.suspend()
        try:
            until(lambda: engine.status() == psutil.STATUS_STOPPED)
            yield
        finally:
            engine.resume()

    def figures(self) -> EngineStats:
        """What the engine says of itself now; ``/metrics`` has what it said a while ago."""
        command = self.engine().cmdline()
        with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as lines:
            sock.settimeout(WAIT_TIMEOUT_S)
            sock.connect(command[command.index("--socket") + 1])
            sock.sendall(wire.watch())
            wire.read_hello(lines.readline())
            told = wire.read_from_engine(lines.readline())
            assert isinstance(told, wire.Stats)
            return told.stats

    def settle(self) -> EngineStats:
        """Wait until the engine has nothing to do; what it says then."""
        while (now := self.figures()).num_running or now.num_waiting:
            time.sleep(0.02)
        return now

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait_for_exit(self, timeout_s: float = END_TIMEOUT_S) -> int:
        code = self.process.wait(timeout_s)
        self._reader.join(WAIT_TIMEOUT_S)
        return code

    def close(self) -> None:
        """End it whatever its state."""
        left = self.descendants()
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait(10)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def serving(**env: str) -> Iterator[Server]:
    """A server that is ready, ended at exit."""
    with contextlib.closing(Server(**env)) as server:
        yield server.wait_until_ready()


def until(condition: Callable[[], T], timeout_s: float = WAIT_TIMEOUT_S) -> T:
    """Wait for something that is sure to come; what it is."""
    deadline_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"it did not come within {timeout_s} s"
        time.sleep(0.02)
    return found


def least(measure: Callable[[], float], enough: float, num_tries: int = 4) -> float:
    """The least of some measured times: what else the machine does makes one longer, and none shorter.

    Args:
        measure: What is measured, each time anew.
        enough: No more are made once one is below.
        num_tries: How many are made at most.
    """
    values = [measure()]
    while values[-1] >= enough and len(values) < num_tries:
        values.append(measure())
    return min(values)


PYTHON_WITHOUT_PIP = """#!/bin/sh
case " $* " in *" -m pip "*) ;; *) exec "$REAL_PYTHON" "$@" ;; esac
echo "$*" >>"$PIP_LOG"
case " $* " in *" /dev/stdin "*) cat >>"$PIP_LOG" ;; esac
"""


def stand_in_venv(folder: Path) -> dict[str, str]:
    """Make an environment for the scripts: nothing is installed, and pip writes down what it should do.

    All else is this environment's Python.

    Args:
        folder: To make it in; ``pip.log`` there has pip's arguments and input.

    Returns:
        The environment in which the scripts use it.
    """
    python = folder / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON_WITHOUT_PIP)
    python.chmod(0o755)
    log = folder / "pip.log"
    return {"VENV_DIR": str(folder / "venv"), "REAL_PYTHON": sys.executable, "PIP_LOG": str(log)}


def python_path(*folders: Path) -> str:
    """``PYTHONPATH`` of a server, with folders before what is there."""
    return os.pathsep.join([*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])])


WITHOUT_MODEL_DIR = Path(__file__).parent / "without_model"
WITHOUT_MODEL = {"PYTHONPATH": python_path(WITHOUT_MODEL_DIR)}
"""The environment of a server whose engine process has no model: where the engine's tokens are not tested.

It gives every sequence a token each 4 ms. A folder with a ``sitecustomize.py`` of a test's own goes before it
in the path, and imports ``engine_without_model``.
"""


STOP = """
import os, signal, sys

import engine_without_model

class Stop:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGSTOP)

sys.meta_path.insert(0, Stop())
"""


def stopping_at(module: str, folder: Path) -> dict[str, str]:
    """The environment in which a process stops itself (SIGSTOP) when it is about to import a module.

    The engine, if it is not that, has no model.

    Args:
        module: Its full name.
        folder: Of its own, for this alone.
    """
    (folder / "sitecustomize.py").write_text(STOP.format(module=module))
    return {"PYTHONPATH": python_path(folder, WITHOUT_MODEL_DIR)}


def is_gone(process: psutil.Process) -> bool:
    """The process has ended (a zombie has)."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def in_flight(server: Server, **parameters: Any) -> Iterator["Future[Answer]"]:
    """A request that the engine is working on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.generate, "And", **parameters)
        until(lambda: server.figures().num_running)
        yield future


IN_THE_MIDDLE = {"max_new_tokens": 150, "min_new_tokens": 150}
"""Of a request that `held_in_flight` holds: more than the engine makes until it is held."""


@contextlib.contextmanager
def held_in_flight(server: Server) -> Iterator["Future[Answer]"]:
    """A request that the engine is in the middle of, where it stands still until the block ends."""
    with in_flight(server, **IN_THE_MIDDLE, details=True) as future, server.engine_stopped():
        yield future


def nothing_left(processes: list[psutil.Process]) -> bool:
    """All have ended, if not at this moment: what is left behind would stay for good."""
    until(lambda: all(is_gone(process) for process in processes), END_TIMEOUT_S)
    return True
