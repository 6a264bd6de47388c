"""The process that renders a model's chat template for every process of a front.

Usage: python -m gptj_serve.serving.templates.process --model-dir DIR --listen-fd N

``serve`` starts it. It renders nothing itself, but forks `NUM_WORKERS` processes that do, and another for
each that ends. A worker has `MAX_MEMORY_BYTES`, and `MAX_CPU_S` for compiling the template and again for each
rendering. The kernel ends a worker that takes more, whatever it does, and the connection that it worked for
ends without an answer. A connection is a rendering: the client sends JSON messages up to the end, and gets a
JSON object, ``{"prompt": ...}`` or ``{"refused": ...}``.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

from gptj_serve import logs
from gptj_serve.children import die_with_parent
from gptj_serve.logs import log_event
from gptj_serve.serving.templates import files
from gptj_serve.serving.templates.jinja import ChatTemplate, RefusedMessages
from gptj_serve.serving.templates.limits import (
    MAX_CPU_S,
    MAX_MEMORY_BYTES,
    MAX_PROMPT_BYTES,
    NUM_WORKERS,
    TOO_MUCH,
)
from gptj_serve.settings import Settings

logger = logging.getLogger(__name__)

READY = b"ready"
PAUSE_S = 1.0
"""How many seconds to wait before the next try after a worker could not start again."""
SOCKET_TIMEOUT_S = 10.0


def main() -> NoReturn:
    """Read the template and serve it for ever, or tell for ever why it cannot be served."""
    parser = argparse.ArgumentParser(prog="gptj_serve.serving.templates.process")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    args = parser.parse_args()
    logs.configure("templates", Settings.from_env(os.environ).log_level)
    listener = socket.socket(fileno=args.listen_fd)
    try:
        found = files.load(args.model_dir)
        if found is None:
            raise files.UnusableTemplate("there is none any more")
        if (reason := _start_worker(listener, found)) is not None:
            raise files.UnusableTemplate(reason)
    except files.UnusableTemplate as error:
        message = f"the chat template is not usable, chat is not served: {error.for_log}"
        log_event(logger, "no_chat", message, level=logging.WARNING, model_dir=str(args.model_dir))
        refused = {"refused": f"is not usable: {error}"}
        _serve(listener, lambda _: refused)
    _keep_workers(listener, found)


def _keep_workers(listener: socket.socket, found: files.TemplateFiles) -> NoReturn:
    """Start more workers beside the one that runs, and one for each that ends."""
    num_missing = NUM_WORKERS - 1
    while True:
        for _ in range(num_missing):
            while _start_worker(listener, found) is not None:
                time.sleep(PAUSE_S)
        os.wait()
        num_missing = 1


def _start_worker(listener: socket.socket, found: files.TemplateFiles) -> str | None:
    """Fork a worker and wait until it can render; returns the reason if it cannot."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _work(listener, found, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with open(reader, "rb") as said:
        message = said.read()
    if message == READY:
        return None
    os.waitpid(pid, 0)
    return message.decode() or f"it {TOO_MUCH}"


def _work(listener: socket.socket, found: files.TemplateFiles, writer: int) -> None:
    """Say whether the template can be used, and render with it for ever; returns if it cannot."""
    die_with_parent(signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with open(writer, "wb") as said:
        try:
            with _Stopwatch():
                template = ChatTemplate(found)
        except files.UnusableTemplate as error:
            said.write(str(error).encode())
            return
        said.write(READY)
    gc.freeze()
    _serve(listener, partial(_render, template))


def _serve(listener: socket.socket, answer: Callable[[bytes], dict[str, str]]) -> NoReturn:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # nobody waits for the answer any more
            connection.settimeout(SOCKET_TIMEOUT_S)
            data = b"".join(iter(partial(connection.recv, 1 << 16), b""))
            connection.sendall(json.dumps(answer(data)).encode())


def _render(template: ChatTemplate, data: bytes) -> dict[str, str]:
    """Make the answer. A `MemoryError` ends the process, and so the connection, as the kernel would."""
    try:
        with _Stopwatch():
            prompt = template.render(json.loads(data))
    except RefusedMessages as error:
        return {"refused": str(error)}
    if len(prompt) > len(data) + MAX_PROMPT_BYTES:
        return {"refused": TOO_MUCH}
    return {"prompt": prompt}


class _Stopwatch:
    """Have the kernel end this process if it computes for `MAX_CPU_S` while this is entered."""

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, MAX_CPU_S)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)


if __name__ == "__main__":
    sys.exit(main())
