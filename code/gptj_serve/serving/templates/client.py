"""Asks the process that renders the model's chat template."""

import asyncio
import json
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from gptj_serve.errors import BadRequest, Overloaded
from gptj_serve.serving.templates.limits import MAX_WAITING, NUM_WORKERS, TOO_MUCH, WAIT_S

NO_TEMPLATE = "messages: this model has no chat template; send a prompt instead (/v1/completions)"
_BUSY = "too many requests wait for the chat template; try again later"


class Renderer(Protocol):
    """Makes a prompt from messages."""

    def render(self, messages: Sequence[Any]) -> str:
        """Make the prompt.

        Raises:
            ServingError: See `TemplateClient`.
        """
        ...


class TemplateClient:
    """Asks over a socket; each process has one, or inherits it.

    Both methods raise `BadRequest` if there is no template, or if it refuses the messages or needs too much
    for them, and `Overloaded` if too many requests wait.

    Args:
        path: The socket, which does not exist if the model has no template.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._turns = asyncio.Semaphore(NUM_WORKERS)
        self._num_waiting = 0

    def render(self, messages: Sequence[Any]) -> str:
        """Make the prompt; this blocks until it is there."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(WAIT_S)
                connection.connect(self._path)
                connection.sendall(json.dumps(messages).encode())
                connection.shutdown(socket.SHUT_WR)
                return _prompt_of(b"".join(iter(partial(connection.recv, 1 << 16), b"")))
        except FileNotFoundError:
            raise BadRequest(NO_TEMPLATE) from None
        except (BlockingIOError, TimeoutError):
            raise Overloaded(_BUSY) from None
        except ConnectionError:
            return _prompt_of(b"")

    async def render_async(self, messages: Sequence[Any]) -> str:
        """Make the prompt while the caller's event loop goes on."""
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded(_BUSY)
        self._num_waiting += 1
        try:
            data = json.dumps(messages).encode()
            return _prompt_of(await asyncio.wait_for(self._exchange(data), WAIT_S))
        except FileNotFoundError:
            raise BadRequest(NO_TEMPLATE) from None
        except (TimeoutError, asyncio.TimeoutError):
            raise Overloaded(_BUSY) from None
        except ConnectionError:
            return _prompt_of(b"")
        finally:
            self._num_waiting -= 1

    async def _exchange(self, data: bytes) -> bytes:
        async with self._turns:
            reader, writer = await asyncio.open_unix_connection(self._path)
            try:
                writer.write(data)
                writer.write_eof()
                return await reader.read()
            finally:
                writer.close()


def _prompt_of(answer: bytes) -> str:
    """Read what the process said, which is nothing if the kernel ended it."""
    try:
        said = json.loads(answer)
    except ValueError:
        said = {"refused": TOO_MUCH}
    if "refused" in said:
        raise BadRequest(f"messages: the model's chat template {said['refused']}")
    prompt = said["prompt"]
    if not prompt:
        raise BadRequest("messages: the model's chat template makes an empty prompt of them")
    return str(prompt)
