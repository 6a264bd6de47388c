"""The service that is attacked, as anybody on the network sees it, and the memory of its processes."""

import contextlib
import functools
import http.client
import json
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil

TIMEOUT_S = 60.0
SAMPLE_S = 0.05


@dataclass(frozen=True)
class Reply:
    """An answer: its status, headers by lower-case name, and body."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Target:
    """A service.

    Attributes:
        host: Where it listens.
        port: Where it listens.
        pid: The process whose memory is measured, with its descendants; None: memory has no bound.
    """

    host: str
    port: int
    pid: int | None = None

    @staticmethod
    def of(url: str, pid: int | None) -> "Target":
        """The service at a URL such as ``http://127.0.0.1:8080``."""
        parts = urllib.parse.urlsplit(url)
        return Target(parts.hostname or "127.0.0.1", parts.port or 80, pid)

    @functools.cached_property
    def front(self) -> str:
        """``http`` or ``mms``: the latter does not describe itself."""
        return "http" if self.ask("GET", "/openapi.json").status == 200 else "mms"

    @contextlib.contextmanager
    def connected(self, data: bytes = b"") -> Iterator[socket.socket]:
        """A connection on which something was sent."""
        with socket.create_connection((self.host, self.port), timeout=TIMEOUT_S) as sock:
            sock.sendall(data)
            yield sock

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """A request of a well-behaved client, on a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, content)

    def generate(self, prompt: str, **parameters: Any) -> Reply:
        """A request for text."""
        body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
        return self.ask("POST", "/invocations", body, {"Content-Type": "application/json"})

    def ping_s(self) -> float:
        """How long a well-behaved client waits for ``/ping`` on a new connection, in seconds."""
        started_s = time.monotonic()
        reply = self.ask("GET", "/ping")
        assert reply.status == 200, reply
        return time.monotonic() - started_s

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; the http front has them."""
        lines = self.ask("GET", "/metrics").body.decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)

    def memory_mb(self) -> float:
        """Memory of its processes, in MB; what several share counts once. 0 where it cannot be seen."""
        if self.pid is None:
            return 0.0
        num_bytes = 0
        parent = psutil.Process(self.pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                num_bytes += process.memory_full_info().pss  # a fork shares nearly all with its parent
        return num_bytes / 1e6

    @contextlib.contextmanager
    def holding(self, max_mb: float) -> Iterator[None]:
        """While it is entered, the service's memory grows by ``max_mb`` at most."""
        before_mb, peak_mb, is_over = self.memory_mb(), 0.0, threading.Event()

        def look() -> None:
            nonlocal peak_mb
            while not is_over.is_set():
                peak_mb = max(peak_mb, self.memory_mb())
                is_over.wait(SAMPLE_S)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
        grown_mb = peak_mb - before_mb
        print(f"    memory: {before_mb:.0f} MB before, {grown_mb:+.0f} MB at most")
        assert grown_mb <= max_mb, f"{grown_mb:.0f} MB more, from {before_mb:.0f} MB; at most {max_mb:g}"


def received(sock: socket.socket, timeout_s: float = TIMEOUT_S) -> bytes:
    """What comes until the other side closes.

    Raises:
        AssertionError: It does not within ``timeout_s``.
    """
    data, deadline_s = b"", time.monotonic() + timeout_s
    while (left_s := deadline_s - time.monotonic()) > 0:
        sock.settimeout(left_s)
        try:
            part = sock.recv(1 << 16)
        except TimeoutError:
            break
        except ConnectionError:
            return data
        if not part:
            return data
        data += part
    raise AssertionError(f"still open after {timeout_s:g} s; it sent {data[:200]!r}")


def reply(sock: socket.socket, method: str = "GET") -> Reply:
    """The next answer on a connection."""
    answer = http.client.HTTPResponse(sock, method=method)
    answer.begin()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return Reply(answer.status, found, answer.read())


def flood(sock: socket.socket, data: bytes, seconds: float) -> float:
    """Send the same again and again, reading nothing; how long the other side let it go on, in seconds."""
    started_s = time.monotonic()
    sock.settimeout(0.2)
    while (now_s := time.monotonic()) < started_s + seconds:
        try:
            sock.send(data)
        except TimeoutError:  # it does not read
            pass
        except OSError:
            break
    return now_s - started_s
