"""An endpoint of the HTTP front by itself, for what a running service cannot be made to do."""

import asyncio
import gc
import gzip
import json
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from gptj_serve.errors import BadRequest, is_failure
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Ask
from gptj_serve.serving.http.body import Bodies
from gptj_serve.serving.http.generate import Generate
from gptj_serve.serving.http.parsing import Parser, work
from gptj_serve.serving.parsing import LARGE_BODY_BYTES, pack, unpack
from gptj_serve.serving.schemas.schema import Schema
from gptj_serve.serving.service import Service
from support.serving_fakes import FakeClient, tokenizer

MIB = 1 << 20
PanicException = type("PanicException", (BaseException,), {})
"""What a panic of the tokenizer's library is in Python: no `Exception`, of a module that has no name."""


def panic(*_: Any) -> Ask:
    raise PanicException("byte index 1 is not a char boundary of `a prompt`")


class HereAndNow:
    """In place of the processes for large bodies: does their work, and counts them."""

    def __init__(self) -> None:
        settings: Any = SimpleNamespace(max_payload_mb=1, request_timeout_s=30.0, max_queue=8)
        self._work = work(settings, tokenizer(), None)  # type: ignore[arg-type]
        self.num_jobs = 0

    async def run(self, parts: Sequence[bytes], _: float) -> bytes:
        self.num_jobs += 1
        return self._work(b"".join(parts))


def ask(
    read: Any,
    body: bytes,
    errors: Schema | None = None,
    headers: Sequence[tuple[bytes, bytes]] = (),
    forks: Any = None,
) -> tuple[int, Any]:
    """The status and the document of an answer."""
    sent: list[dict[str, Any]] = []

    async def answer() -> None:
        service = Service(FakeClient(), tokenizer(), MIB, 30.0, streaming=True)
        shared: Any = SimpleNamespace(
            settings=SimpleNamespace(max_payload_mb=1, request_timeout_s=30.0),
            service=service,
            bodies=Bodies(MIB),
            metrics=SimpleNamespace(finished=lambda *_, **__: None),
            parser=Parser(service, forks, None),  # type: ignore[arg-type]
            warm_up_key="a key",
        )
        messages = asyncio.Queue[dict[str, Any]]()
        messages.put_nowait({"type": "http.request", "body": body})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await Generate(shared, read, errors)({"headers": headers}, messages.get, send)

    asyncio.run(answer())
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_panic_of_a_library_is_an_error_of_one_request() -> None:
    assert ask(panic, b"{}")[1]["error"] == "internal error"
    status, document = ask(panic, b"{}", schemas.COMPLETIONS)
    assert (status, document["error"]["message"]) == (500, "internal error")
    assert ask(schemas.read, b"{}")[0] == 400


GZIPPED = [(b"content-encoding", b"gzip")]


@pytest.mark.parametrize("filler", ["", " " * 2 * LARGE_BODY_BYTES], ids=["small", "large when inflated"])
def test_what_is_wrong_with_a_compressed_body_is_told_in_its_own_schema(filler: str) -> None:
    forks = HereAndNow()

    def told(document: Any) -> Any:
        body = gzip.compress((json.dumps(document) + filler).encode())
        status, answer = ask(schemas.read, body, headers=GZIPPED, forks=forks)
        assert status == 400
        return answer["error"]

    assert "top_p" in told({"prompt": "a", "top_p": 7})["message"]
    assert told({"inputs": "a", "parameters": {"top_p": 7}}).startswith("parameters.top_p")
    assert forks.num_jobs == (2 if filler else 0)


def test_a_compressed_body_may_not_be_larger_than_a_plain_one() -> None:
    forks = HereAndNow()
    body = gzip.compress(b" " * (MIB + 1))
    assert len(body) < LARGE_BODY_BYTES
    status, answer = ask(schemas.read, body, headers=GZIPPED, forks=forks)
    assert (status, forks.num_jobs) == (413, 1)
    assert "when inflated" in answer["error"]


def test_nor_does_a_panic_pass_from_one_process_to_another() -> None:
    with pytest.raises(Exception, match="internal error") as caught:
        unpack(pack(panic, "id"))
    assert "prompt" not in str(caught.value)


def test_nothing_of_a_request_with_an_error_waits_for_the_garbage_collector() -> None:
    errors = []

    def read(*_: Any) -> Ask:
        error = BadRequest("this variable, the error and its traceback are a circle")
        errors.append(weakref.ref(error))
        raise error

    gc.disable()
    try:
        assert ask(read, b"{}")[0] == 400
        assert errors[0]() is None
    finally:
        gc.enable()


def test_who_wants_to_end_is_not_kept() -> None:
    assert [
        is_failure(error) for error in (ValueError(), PanicException(), SystemExit(), KeyboardInterrupt())
    ] == [
        True,
        True,
        False,
        False,
    ]
