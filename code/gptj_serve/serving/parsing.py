"""Turns bodies into calls; large bodies are parsed in processes of their own (`gptj_serve.serving.forks`)."""

import contextlib
import fcntl
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from gptj_serve.errors import DeadlinePassed, InternalError, ServingError
from gptj_serve.serving import forks
from gptj_serve.serving.body import decoded
from gptj_serve.serving.call import Call
from gptj_serve.serving.service import Read, Service, log_unexpected

LARGE_BODY_BYTES = 16 * 1024
"""A larger body could hold up all streams for more than some milliseconds, and take much memory."""
NUM_PLACES = 2
"""How many large bodies are parsed at once, as each can take some hundred MB meanwhile."""
_RETRY_S = 0.01


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body and what its headers say about it.

    Attributes:
        data: The bytes.
        content_type: The ``Content-Type`` header.
        accept: The ``Accept`` header.
        arrived_s: When the request came, on the service's clock.
        request_id: The request's id, for the log.
        encoding: The ``Content-Encoding`` header; None if ``data`` is not encoded.
    """

    data: bytes = field(repr=False)
    content_type: str | None
    accept: str | None
    arrived_s: float
    request_id: str
    encoding: str | None = None

    @property
    def is_large(self) -> bool:
        """Whether it is parsed in a process of its own."""
        return self.encoding is not None or len(self.data) > LARGE_BODY_BYTES

    def inflated(self, max_bytes: int) -> "Body":
        """The same body without its encoding; it raises as `gptj_serve.serving.body.decoded`."""
        return replace(self, data=decoded(self.data, self.encoding, max_bytes), encoding=None)


def parse(service: Service, read: Read, body: Body) -> Call:
    """Read and check a body in this process; raises `ServingError`."""
    body = body.inflated(service.max_payload_bytes)
    return service.parse(body.data, body.content_type, body.accept, read, body.arrived_s)


def pack(function: Callable[[], Call], request_id: str) -> bytes:
    """A call, or the error in its place, as bytes that `unpack` reads.

    Nothing is raised. What was not foreseen is logged here, where its traceback is.
    """
    try:
        outcome: Call | ServingError = _without_texts(function())
    except ServingError as error:
        outcome = error
    except BaseException as error:
        log_unexpected(error, request_id)
        outcome = InternalError("internal error")
    return pickle.dumps(outcome)


def unpack(packed: bytes) -> Call:
    """Read a call from bytes; raises the `ServingError` that is there in its place."""
    outcome: Call | ServingError = pickle.loads(packed)
    if isinstance(outcome, ServingError):
        raise outcome
    return outcome


def _without_texts(call: Call) -> Call:
    """The call without the megabytes of text that nobody reads any more."""
    prompts = call.prompts
    if not call.parameters.return_full_text:
        prompts = tuple(replace(prompt, text="") for prompt in prompts)
    return replace(call, ask=replace(call.ask, texts=(), messages=None), prompts=prompts)


def parse_in_worker(service: Service, read: Read, body: Body, directory: Path) -> Call:
    """Read and check a body in one of several processes that each have one thread.

    Args:
        service: Checks what was read, and has the limits.
        read: Reads the body.
        body: The body.
        directory: The directory with the few places for large bodies that all these processes share.

    Raises:
        DeadlinePassed: It took too long, including the wait for a place.
        ServingError: The body is wrong.
    """
    limit_s = service.request_timeout_s
    if not body.is_large or len(body.data) > service.max_payload_bytes:
        return parse(service, read, body)
    until_s = body.arrived_s + limit_s
    late = DeadlinePassed(f"no answer within {limit_s:g} s")
    with _place(directory, until_s, late):

        def work(_: bytes) -> bytes:
            return pack(lambda: parse(service, read, body), body.request_id)

        try:
            return unpack(forks.run(work, b"", max(0.001, until_s - time.monotonic())))
        except forks.WorkLost:
            raise late if time.monotonic() >= until_s else InternalError("internal error") from None


@contextlib.contextmanager
def _place(directory: Path, until_s: float, late: DeadlinePassed) -> Iterator[None]:
    """One of the few places that all workers share."""
    with contextlib.ExitStack() as stack:
        paths = [directory / f"large-body-{number}.lock" for number in range(NUM_PLACES)]
        files = [stack.enter_context(path.open("wb")) for path in paths]
        while not any(_lock(file.fileno()) for file in files):
            if time.monotonic() >= until_s:
                raise late
            time.sleep(_RETRY_S)
        yield


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
