"""Every setting of the service, read once from an environment that is passed in.

An unknown name that starts with ``GPTJ_``, or a value outside its range, is a `StartupError` that names the
key, the value and what is allowed.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gptj_serve.errors import StartupError
from gptj_serve.safe_path import model_as_given, model_option
from gptj_serve.values import integer, real

ENGINES = ("auto", "fused", "deepspeed", "hf")
MAX_PORT = {"mms": 32766, "http": 65535}
FRONTS = tuple(MAX_PORT)
PAGE = ("auto", "on", "off")
DEFAULT_MODEL_DIR = Path("/opt/ml/model")
LOG_LEVELS = ("debug", "info", "warning", "error")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """The service's settings; ``None`` is chosen by what the machine and the model have.

    Attributes:
        model_dir: Where to look for the model; it may be nested in sub-folders.
        model_as_given: How the user wrote that directory, for messages; None if nobody did.
        model_option: What messages put before it: the setting or the option that named it.
        engine: One of `ENGINES`.
        front: One of `FRONTS`.
        host: IPv4 address to listen on.
        port: Port to listen on, 1..65535; at most 32766 with the ``mms`` front, which takes no higher port.
        max_batch_size: Sequences that run together at most, 1..256.
        max_context: Prompt plus new tokens at most, 2..1048576 (never more than the model's).
        max_queue: Sequences that may wait in the engine, and requests that may wait in the front for a
            worker, 0..100000.
        batch_wait_ms: After a batch of several, how many milliseconds waiting requests wait for others.
        request_timeout_s: How long a request may take, from when a worker of the front takes it up.
        stream_timeout_s: The same for a request whose answer is streamed.
        stall_timeout_s: The HTTP front is not healthy when the engine has made no step for so many seconds
            while work is waiting.
        model_name: The model's name in OpenAI's and TGI's answers; None takes the model's own name.
        idle_timeout_s: The HTTP front closes a connection that has been idle for so many seconds since the
            last answer. Load balancers usually keep theirs for 60 s, and should close first.
        page: Whether the HTTP front serves a page to try it.
        cors_origins: Web origins whose pages may call the HTTP front; "*" is any.
        drain_timeout_s: How many seconds running requests may go on after SIGTERM.
        max_payload_mb: The largest request body, in megabytes.
        num_workers: How many worker processes the multi-model-server front has.
        worker_timeout_s: After this many seconds, the model server kills a worker that is silent.
        log_level: One of `LOG_LEVELS`.
    """

    model_dir: Path
    model_as_given: str | None
    model_option: str
    engine: str
    front: str
    host: str
    port: int
    max_batch_size: int | None
    max_context: int | None
    max_queue: int
    batch_wait_ms: int
    request_timeout_s: float
    stream_timeout_s: float
    stall_timeout_s: float
    model_name: str | None
    idle_timeout_s: int
    page: bool
    cors_origins: tuple[str, ...]
    drain_timeout_s: float
    max_payload_mb: int
    num_workers: int | None
    worker_timeout_s: int
    log_level: str

    @property
    def local_host(self) -> str:
        """The address at which this machine itself reaches the service."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host

    @staticmethod
    def from_env(env: Mapping[str, str]) -> "Settings":
        """Read and check the settings.

        Args:
            env: Names and values, ``os.environ`` as a rule.

        Raises:
            StartupError: An unknown ``GPTJ_*`` name, or a value outside its range.
        """
        _reject_unknown(env)
        _read(env, "TENSOR_PARALLEL_DEGREE", 1, integer(1, 1))
        worker_timeout_s = _read(env, "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS", None, integer(3, 3600))
        request_timeout_s = _request_timeout(env, worker_timeout_s)
        front = _read(env, "GPTJ_FRONT", "mms", _one_of(FRONTS))
        port = _port_of(front)
        return Settings(
            model_dir=_read(env, "GPTJ_MODEL_DIR", DEFAULT_MODEL_DIR, _path),
            model_as_given=model_as_given(env),
            model_option=model_option(env),
            engine=_read(env, "GPTJ_ENGINE", "auto", _one_of(ENGINES)),
            front=front,
            host=_read(env, "GPTJ_HOST", "0.0.0.0", _ipv4),
            port=_read(env, "GPTJ_PORT", _read(env, "SAGEMAKER_BIND_TO_PORT", 8080, port), port),
            max_batch_size=_read(env, "GPTJ_MAX_BATCH_SIZE", None, _auto_or(integer(1, 256))),
            max_context=_read(env, "GPTJ_MAX_CONTEXT", None, _auto_or(integer(2, 1 << 20))),
            max_queue=_read(env, "GPTJ_MAX_QUEUE", 128, integer(0, 100_000)),
            batch_wait_ms=_read(env, "GPTJ_BATCH_WAIT_MS", 5, integer(0, 1000)),
            request_timeout_s=request_timeout_s,
            stream_timeout_s=_read(env, "GPTJ_STREAM_TIMEOUT_S", 470.0, real(0.1, 3600)),
            stall_timeout_s=_read(env, "GPTJ_STALL_TIMEOUT_S", 60.0, real(1, 3600)),
            model_name=_read(env, "GPTJ_MODEL_NAME", None, _name),
            idle_timeout_s=_read(env, "GPTJ_IDLE_TIMEOUT_S", 75, integer(1, 3600)),
            page=_page(env),
            cors_origins=_read(env, "GPTJ_CORS_ORIGINS", (), _origins),
            drain_timeout_s=_read(env, "GPTJ_DRAIN_TIMEOUT_S", 25.0, real(0, 3600)),
            max_payload_mb=_read(env, "SAGEMAKER_MAX_PAYLOAD_IN_MB", 6, integer(1, 100)),
            num_workers=_read(env, "SAGEMAKER_MODEL_SERVER_WORKERS", None, _auto_or(integer(1, 256))),
            worker_timeout_s=worker_timeout_s or int(request_timeout_s) + 10,
            log_level=_read(env, "GPTJ_LOG_LEVEL", "info", _one_of(LOG_LEVELS)),
        )


KEYS = (
    "GPTJ_MODEL_DIR",
    "GPTJ_ENGINE",
    "GPTJ_FRONT",
    "GPTJ_HOST",
    "GPTJ_PORT",
    "GPTJ_MAX_BATCH_SIZE",
    "GPTJ_MAX_CONTEXT",
    "GPTJ_MAX_QUEUE",
    "GPTJ_BATCH_WAIT_MS",
    "GPTJ_REQUEST_TIMEOUT_S",
    "GPTJ_STREAM_TIMEOUT_S",
    "GPTJ_STALL_TIMEOUT_S",
    "GPTJ_MODEL_NAME",
    "GPTJ_IDLE_TIMEOUT_S",
    "GPTJ_PAGE",
    "GPTJ_CORS_ORIGINS",
    "GPTJ_DRAIN_TIMEOUT_S",
    "GPTJ_LOG_LEVEL",
)
"""All ``GPTJ_*`` names."""


def _page(env: Mapping[str, str]) -> bool:
    asked = _read(env, "GPTJ_PAGE", "auto", _one_of(PAGE))
    # SageMaker's containers, which get credentials, have no page, as nobody could reach it there
    inside_sagemaker = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI" in env
    return not inside_sagemaker if asked == "auto" else asked == "on"


def _name(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/:@-]{1,200}", raw):  # the name is also a part of a path
        raise ValueError("must be 1 to 200 letters, digits and . _ - / : @")
    return raw


def _origins(raw: str) -> tuple[str, ...]:
    origins = tuple(part.strip() for part in raw.split(","))
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ValueError("must be * or origins such as https://example.com, with commas between them")
    return origins


def _request_timeout(env: Mapping[str, str], worker_timeout_s: int | None) -> float:
    """The request timeout, which ends before the model server kills the worker that holds the request."""
    default = 58.0 if worker_timeout_s is None else min(58.0, worker_timeout_s - 2.0)
    timeout_s = _read(env, "GPTJ_REQUEST_TIMEOUT_S", default, real(0.1, 3600))
    if worker_timeout_s is not None and timeout_s >= worker_timeout_s:
        raise StartupError(
            f"GPTJ_REQUEST_TIMEOUT_S={timeout_s:g} is not below SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS="
            f"{worker_timeout_s}: the worker would be killed before it can answer"
        )
    return timeout_s


def _reject_unknown(env: Mapping[str, str]) -> None:
    for name in sorted(env):
        if name.startswith("GPTJ_") and name not in KEYS:
            raise StartupError(f"{name}: no such setting; {_suggestion(name)}")


def _suggestion(name: str) -> str:
    # names are compared without their common beginning, which would make any two of them alike
    keys = {key.removeprefix("GPTJ_"): key for key in KEYS}
    near = difflib.get_close_matches(name.removeprefix("GPTJ_"), keys, n=1, cutoff=0.7)
    return f"did you mean {keys[near[0]]}?" if near else f"there are {', '.join(KEYS)}"


def _read(env: Mapping[str, str], key: str, default: T, parse: Callable[[str], T]) -> T:
    raw = env.get(key, "").strip()
    if not raw:
        return default
    try:
        return parse(raw)
    except ValueError as error:
        raise StartupError(f"{key}={raw!r}: {error}") from None


def _ipv4(raw: str) -> str:
    try:
        return str(ipaddress.IPv4Address(raw))
    except ValueError:
        raise ValueError("must be an IPv4 address such as 127.0.0.1 or 0.0.0.0") from None


def _path(raw: str) -> Path:
    # the model server's workers run in another directory
    return Path(raw).expanduser().absolute()


def _port_of(front: str) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        try:
            return integer(1, MAX_PORT[front])(raw)
        except ValueError as error:
            limits = f"GPTJ_FRONT=mms takes none above {MAX_PORT['mms']}, http up to {MAX_PORT['http']}"
            raise ValueError(f"{error} ({limits})" if front == "mms" else str(error)) from None

    return parse


def _auto_or(parse: Callable[[str], int]) -> Callable[[str], int | None]:
    def parse_auto(raw: str) -> int | None:
        if raw.lower() == "auto":
            return None
        try:
            return parse(raw)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None

    return parse_auto


def _one_of(allowed: tuple[str, ...]) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw.lower() not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return raw.lower()

    return parse
