"""Reads the request headers that have a meaning, and makes the headers of answers."""

import re
import uuid
from collections.abc import Iterable, Mapping

from gptj_serve.errors import BadRequest
from gptj_serve.serving.call import Call
from gptj_serve.serving.service import Result

TIMEOUT = "x-request-timeout"
CUSTOM_ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
REQUEST_ID = "x-request-id"
MAX_TIMEOUT_S = 1e6

Headers = Mapping[str, str]


def read(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    """The headers of an ASGI scope by lower-case name; of several with the same name, the last."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}


def request_id(headers: Headers) -> str:
    """The client's own id if it is a plain one, or else a new id."""
    given = headers.get(REQUEST_ID, "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else str(uuid.uuid4())


def timeout_s(headers: Headers, limit_s: float) -> float:
    """The time that a client gives its request, at most the limit.

    Raises:
        BadRequest: It is no number of seconds.
    """
    given = headers.get(TIMEOUT)
    if given is None:
        return limit_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < MAX_TIMEOUT_S:
        raise BadRequest(f"header {TIMEOUT}={given[:40]!r}: must be seconds, above 0 and at most {limit_s:g}")
    return min(seconds, limit_s)


def of_every_answer(headers: Headers, request_id: str) -> dict[str, str]:
    """Headers that every answer to a request has."""
    found = {REQUEST_ID: request_id}
    attributes = headers.get(CUSTOM_ATTRIBUTES)
    if attributes is not None and re.fullmatch(r"[\x20-\x7e]{0,1024}", attributes):
        found[CUSTOM_ATTRIBUTES] = attributes
    return found


def of_stream(call: Call) -> dict[str, str]:
    """The headers with what is known of a call when its stream begins."""
    return {"x-prompt-tokens": str(call.num_prompt_tokens)}


def of_result(call: Call, result: Result) -> dict[str, str]:
    """The headers with what a finished call took, in seconds."""
    found = {
        **of_stream(call),
        "x-generated-tokens": str(result.num_generated_tokens),
        "x-inference-time": f"{result.total_s:.6f}",
    }
    if result.queue_s is not None:
        found["x-queue-time"] = f"{result.queue_s:.6f}"
    if result.time_per_token_s is not None:
        found["x-time-per-token"] = f"{result.time_per_token_s:.6f}"
    return found
