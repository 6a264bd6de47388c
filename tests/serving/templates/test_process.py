"""The process that renders templates, from outside: what it says, what it may take, that it lives on."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from gptj_serve.errors import BadRequest, Overloaded
from gptj_serve.serving.templates import limits
from gptj_serve.serving.templates.client import TemplateClient
from support.server import is_gone, nothing_left, until

HELLO = [{"role": "user", "content": "Hello"}]
LIMIT = "messages: the model's chat template takes more than it may"


class Process:
    """One that was started for a model directory.

    Attributes:
        client: Asks it.
        supervisor: The process itself; its children render.
    """

    def __init__(self, folder: Path, source: str) -> None:
        (folder / "chat_template.jinja").write_text(source)
        path = folder / "s"
        self.client = TemplateClient(path)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(limits.MAX_WAITING)
            descriptor = listener.fileno()
            command = [
                sys.executable,
                "-m",
                "gptj_serve.serving.templates.process",
                "--model-dir",
                str(folder),
            ]
            command += ["--listen-fd", str(descriptor)]
            self._popen = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[descriptor])
        self.supervisor = psutil.Process(self._popen.pid)

    def workers(self) -> list[psutil.Process]:
        return [one for one in self.supervisor.children() if not is_gone(one)]

    def close(self) -> str:
        """End it, and see that nothing is left; what it has logged."""
        workers = self.workers()
        self._popen.kill()
        said, _ = self._popen.communicate(timeout=10)
        assert nothing_left(workers)
        return said.decode()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Process]]:
    """Starts a process for a template."""
    started: list[Process] = []

    def make(source: str) -> Process:
        started.append(Process(tmp_path, source))
        return started[-1]

    yield make
    for process in started:
        if not is_gone(process.supervisor):
            process.close()


def refusal(process: Process, messages: Any = HELLO) -> str:
    with pytest.raises(BadRequest) as caught:
        process.client.render(messages)
    return caught.value.message


def test_it_renders_for_many_at_once(start: Callable[[str], Process]) -> None:
    process = start("{{ messages[0].content }}{{ raise_exception('no') if messages[0].content == 'x' }}")
    with ThreadPoolExecutor(8) as pool:
        texts = [f"{number} é\U0001f600" * 500 for number in range(40)]
        said = pool.map(lambda text: process.client.render([{"role": "user", "content": text}]), texts)
        assert list(said) == texts

    async def ask_all() -> list[str]:
        asked = [process.client.render_async([{"role": "user", "content": text}]) for text in texts]
        return await asyncio.gather(*asked)

    assert asyncio.run(ask_all()) == texts
    message = refusal(process, [{"role": "user", "content": "x"}])
    assert message == "messages: the model's chat template refuses them: no"
    assert "makes an empty prompt" in refusal(process, [{"role": "user", "content": ""}])


LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
ONLY_FOR_BAD = "{% if messages[0].content == 'bad' %}BAD{% endif %}fine"
BAD = [{"role": "user", "content": "bad"}]


@pytest.mark.parametrize(
    "bad",
    [
        LOOPS,
        "{{ 'a' * 10 ** 10 }}",
        "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s * 2 %}{% endfor %}",
        "{{ (messages | length + 9) ** (10 ** 9) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ 'a' * (5 * 1024 * 1024) }}",
    ],
    ids=["loops", "memory", "doubles", "number", "format", "prompt"],
)
def test_a_rendering_that_takes_too_much_ends_alone(start: Callable[[str], Process], bad: str) -> None:
    process = start(ONLY_FOR_BAD.replace("BAD", bad))
    assert process.client.render(HELLO) == "fine"
    until(lambda: len(process.workers()) == limits.NUM_WORKERS)
    before_s = process.supervisor.cpu_times().user
    started_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(refusal, process, BAD)
        peak = 0
        while not taking.done():
            assert process.client.render(HELLO) == "fine"
            time.sleep(0.02)
            for worker in process.workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    peak = max(peak, worker.memory_info().rss)
    assert taking.result().startswith(LIMIT)
    assert peak < limits.MAX_MEMORY_BYTES + (64 << 20)
    assert time.monotonic() - started_s < limits.WAIT_S
    assert process.client.render(HELLO) == "fine"
    until(lambda: len(process.workers()) == limits.NUM_WORKERS)
    assert process.supervisor.cpu_times().user - before_s < 0.5  # it computes nothing itself


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "it is no Jinja: "),
        ("{{ 'a' * 10 ** 10 }}", "it takes more than it may: 1 s of computing, 256 MiB of memory"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "it takes more than",
        ),
    ],
    ids=["no-jinja", "memory", "loops"],
)
def test_a_template_that_cannot_be_used_is_said_once_and_to_all(
    start: Callable[[str], Process], source: str, reason: str
) -> None:
    process = start(source)
    for _ in range(3):
        assert refusal(process).startswith(f"messages: the model's chat template is not usable: {reason}")
    (record,) = map(json.loads, process.close().splitlines())
    assert (record["level"], record["event"]) == ("warning", "no_chat")
    assert reason in record["message"]


def test_a_worker_that_was_killed_is_replaced(start: Callable[[str], Process]) -> None:
    process = start("fine")
    assert process.client.render(HELLO) == "fine"
    until(lambda: len(process.workers()) == limits.NUM_WORKERS)
    workers = process.workers()
    for worker in workers:
        worker.kill()
    assert nothing_left(workers)
    assert process.client.render(HELLO) == "fine"
    until(lambda: len(process.workers()) == limits.NUM_WORKERS)


def test_who_waits_too_long_or_in_too_long_a_queue_is_told_to_come_again(
    start: Callable[[str], Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = start("fine")
    assert process.client.render(HELLO) == "fine"
    until(lambda: len(process.workers()) == limits.NUM_WORKERS)
    for one in (process.supervisor, *process.workers()):
        os.kill(one.pid, signal.SIGSTOP)
    monkeypatch.setattr("gptj_serve.serving.templates.client.WAIT_S", 0.3)
    with pytest.raises(Overloaded):
        process.client.render(HELLO)

    async def ask_many() -> list[Any]:
        asked = [process.client.render_async(HELLO) for _ in range(limits.MAX_WAITING + 5)]
        started_s = time.monotonic()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - started_s < 5
        return answers

    assert {type(one) for one in asyncio.run(ask_many())} == {Overloaded}
    for one in (process.supervisor, *process.workers()):
        os.kill(one.pid, signal.SIGCONT)
    monkeypatch.undo()
    assert process.client.render(HELLO) == "fine"


def test_without_a_socket_there_is_no_template(tmp_path: Path) -> None:
    client = TemplateClient(tmp_path / "none")
    with pytest.raises(BadRequest, match="no chat template"):
        client.render(HELLO)
    with pytest.raises(BadRequest, match="no chat template"):
        asyncio.run(client.render_async(HELLO))
