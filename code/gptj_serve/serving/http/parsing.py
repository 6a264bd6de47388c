"""Parses bodies beside streams: a large body waits for a place and is parsed in a process of its own."""

import asyncio
import contextlib
import io
import pickle
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gptj_serve.errors import DeadlinePassed, Overloaded, PayloadTooLarge
from gptj_serve.request import ModelInfo
from gptj_serve.serving import parsing
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.forks import ForkServer, Work
from gptj_serve.serving.parsing import LARGE_BODY_BYTES, NUM_PLACES, Body
from gptj_serve.serving.service import Read, Service
from gptj_serve.serving.templates.client import Renderer, TemplateClient
from gptj_serve.serving.text import Tokenizer
from gptj_serve.settings import Settings

MAX_WAITING = 16
"""How many large bodies wait for a place at most; the next one is refused with 429."""


def work(settings: Settings, tokenizer: Tokenizer, template: Renderer) -> Work:
    """Parse a large body; a process of its own does this."""

    def parse(job: bytes) -> bytes:
        file = io.BytesIO(job)
        info, read, body = pickle.load(file)
        body = replace(body, data=file.read())
        service = Service(
            _Known(info),
            tokenizer,
            settings.max_payload_mb * 1024 * 1024,
            settings.request_timeout_s,
            streaming=True,
            max_queue=settings.max_queue,
            template=template,
        )
        return parsing.pack(lambda: parsing.parse(service, read, body), body.request_id)

    return parse


class Parser:
    """Parses for a front that has a loop.

    Args:
        service: Checks what was read.
        forks: The server whose forks do `work`.
        template: Makes prompts from messages.
    """

    def __init__(self, service: Service, forks: ForkServer, template: TemplateClient) -> None:
        self._service = service
        self._forks = forks
        self._template = template
        self._places = asyncio.Semaphore(NUM_PLACES)
        self._num_inside = 0

    def parse(self, read: Read, body: Body, limit_s: float) -> Call | Coroutine[Any, Any, Call]:
        """Read and check a body.

        Args:
            read: A function of a module, where the other process looks it up.
            body: The body.
            limit_s: How many seconds it may take from the request's arrival.

        Returns:
            The call, or an awaitable if it takes longer; cancelling that gives its place up.

        Raises:
            Overloaded: Too many large bodies wait, or too many chats.
            DeadlinePassed: It took too long.
            ServingError: The body is wrong.
        """
        if len(body.data) <= LARGE_BODY_BYTES:
            with contextlib.suppress(PayloadTooLarge):  # a body that becomes large is inflated elsewhere
                body = body.inflated(LARGE_BODY_BYTES)
        if body.is_large:
            return self._in_time(self._apart(read, body, limit_s), body, limit_s)
        ask = read(body.data, body.content_type, self._service.max_payload_bytes)
        if ask.messages is not None:
            return self._in_time(self._chat(ask, ask.messages, body), body, limit_s)
        return self._service.check(ask, body.arrived_s, body.accept)

    async def _in_time(self, work: Coroutine[Any, Any, Call], body: Body, limit_s: float) -> Call:
        try:
            return await asyncio.wait_for(work, body.arrived_s + limit_s - time.monotonic())
        except asyncio.TimeoutError:
            raise DeadlinePassed(f"no answer within {limit_s:g} s") from None

    async def _apart(self, read: Read, body: Body, limit_s: float) -> Call:
        if self._num_inside >= NUM_PLACES + MAX_WAITING:
            raise Overloaded(
                f"{self._num_inside} large bodies wait to be parsed, and no more may; try again later",
                retry_after_s=1,
            )
        self._num_inside += 1
        try:
            async with self._places:
                # the megabytes are not copied into the pickle
                head = pickle.dumps((self._service.info, read, replace(body, data=b"")))
                return parsing.unpack(await self._forks.run((head, body.data), limit_s))
        finally:
            self._num_inside -= 1

    async def _chat(self, ask: Ask, messages: Sequence[Any], body: Body) -> Call:
        prompt = await self._template.render_async(messages)
        ask = ask.with_prompt(prompt)
        if len(prompt) > LARGE_BODY_BYTES:  # a template may make a long prompt from short messages
            return await asyncio.to_thread(self._service.check, ask, body.arrived_s, body.accept)
        return self._service.check(ask, body.arrived_s, body.accept)


@dataclass(frozen=True, slots=True)
class _Known:
    """An engine about which only this is known."""

    info: ModelInfo
