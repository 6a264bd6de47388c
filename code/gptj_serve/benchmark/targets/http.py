"""A target that is a server at a URL and speaks our API."""

import asyncio
import contextlib
import ssl
import time
import urllib.request
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from gptj_serve.benchmark.targets import completions
from gptj_serve.benchmark.targets.event_client import Connection, TimedExchange
from gptj_serve.benchmark.targets.target import Query, TimedAnswer, document
from gptj_serve.errors import StartupError


class HttpTarget:
    """Meets `gptj_serve.benchmark.targets.target.Target`.

    Connections are kept, and new ones are made before the clock runs.

    Args:
        name: The target's name in results.
        url: Where the server listens; without a path, `/invocations` is asked.
        timeout_s: How many seconds an answer may take.
        fields: Further fields of every request.

    Raises:
        StartupError: The URL is not valid.
    """

    def __init__(
        self,
        name: str,
        url: str,
        timeout_s: float,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StartupError(f"{url}: must be an address such as http://127.0.0.1:8080")
        self.name = name
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._path = parts.path if parts.path.strip("/") else "/invocations"
        self._timeout_s = timeout_s
        self._fields = fields or {}
        self._idle: list[Connection] = []

    async def ask(self, ask: Query) -> TimedAnswer:
        """See `Target`."""
        asked_s = time.monotonic()
        try:
            connection = await asyncio.wait_for(self._connection(), self._timeout_s)
            try:
                asked = connection.exchange({**document(ask), **self._fields}, uuid.uuid4().hex, self._path)
                exchange = await asyncio.wait_for(asked, self._timeout_s)
            except BaseException:
                connection.close()
                raise
        except asyncio.TimeoutError:
            return TimedAnswer(asked_s, self._timeout_s, 0, error=f"no answer within {self._timeout_s:g} s")
        except OSError as error:
            return TimedAnswer(asked_s, time.monotonic() - asked_s, 0, error=str(error))
        if connection.is_open:
            self._idle.append(connection)
        else:
            connection.close()
        return _answer(exchange, ask)

    async def close(self) -> None:
        """See `Target`."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return await Connection.connect(self._port, self._host, self._tls)


def _answer(exchange: TimedExchange, ask: Query) -> TimedAnswer:
    asked_s, ended_s = exchange.asked_s, exchange.ended_s
    if exchange.status != 200:
        error = f"status {exchange.status}: {completions.error_text(completions.read(exchange.body))}"
        return TimedAnswer(asked_s, ended_s - asked_s, exchange.status, error=error)
    event_s = exchange.event_s if ask.stream else None
    return completions.timed_answer(asked_s, ended_s, exchange.body, event_s)


def engine_facts(url: str) -> dict[str, str]:
    """What a server's `/metrics` tell about its engine and build; empty if it has none."""
    parts = urlsplit(url)
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        with urllib.request.urlopen(f"{parts.scheme}://{parts.netloc}/metrics", timeout=10) as answer:
            lines: list[str] = answer.read().decode("utf-8", "replace").splitlines()
        for line in lines:
            if line.startswith(("gptj_engine_info{", "gptj_build_info{")):
                labels = line[line.index("{") + 1 : line.rindex("}")].split(",")
                facts |= {name: value.strip('"') for name, _, value in (one.partition("=") for one in labels)}
    return facts
