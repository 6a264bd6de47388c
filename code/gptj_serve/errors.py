"""Errors that a client or an operator sees. Each says what was wrong and what would be right.

Every `ServingError` has one HTTP status and one JSON body; nothing else of an exception (type, traceback,
file names) ever leaves the process.
"""

from typing import Any


class StartupError(Exception):
    """The service cannot start. The message is printed as it is; the exit code is non-zero."""


def is_failure(error: BaseException) -> bool:
    """Whether it is a failure and no wish to end; a panic of a library in Rust is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """What an error says, without the compiler's pages or PyTorch's advice after it."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def release_frames(error: BaseException) -> None:
    """Release what the functions held that an error has passed through, for example bodies of megabytes.

    A function that raises an error which one of its own variables holds makes a circle through its
    traceback, and asyncio has such functions too. A circle stays until the garbage collector finds it.
    """
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__context__


class ServingError(Exception):
    """A request that gets an error answer.

    Attributes:
        status: The HTTP answer's status.
        kind: The answer's ``error_type``.
        code: The code by which OpenAI's clients know the error, where that is not its kind.

    Args:
        message: What was wrong, naming the field and the allowed range.
        retry_after_s: Seconds after which the client may try again (sent as ``Retry-After``).
    """

    status = 500
    kind = "internal"
    code: str | None = None

    def __init__(self, message: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def to_wire(self) -> dict[str, Any]:
        """The error as a JSON object for the engine socket; `from_wire` reads it back."""
        return {"kind": self.kind, "message": self.message, "retry_after_s": self.retry_after_s}

    def to_body(self, request_id: str) -> dict[str, str]:
        """The body of the HTTP answer."""
        return {"error": self.message, "error_type": self.kind, "request_id": request_id}

    @staticmethod
    def from_wire(wire: dict[str, Any]) -> "ServingError":
        """Rebuild an error that another process sent."""
        cls = _BY_KIND.get(wire["kind"], InternalError)
        return cls(wire["message"], retry_after_s=wire.get("retry_after_s"))


class BadRequest(ServingError):
    """400: the request itself is wrong."""

    status = 400
    kind = "validation"


class ContextOverflow(BadRequest):
    """400: prompt and new tokens are more than the context holds."""

    code = "context_length_exceeded"


class NotFound(ServingError):
    """404: there is no such path."""

    status = 404
    kind = "not_found"


class ModelNotFound(NotFound):
    """404: another model was asked for."""

    code = "model_not_found"


class MethodNotAllowed(ServingError):
    """405: the path has other methods."""

    status = 405
    kind = "method_not_allowed"


class PayloadTooLarge(ServingError):
    """413: the body is larger than the limit."""

    status = 413
    kind = "payload_too_large"


class UnsupportedMediaType(ServingError):
    """415: the content type is none that we read."""

    status = 415
    kind = "unsupported_media_type"


class Overloaded(ServingError):
    """429: the queue is full."""

    status = 429
    kind = "overloaded"


class InternalError(ServingError):
    """500: our fault; the batch was given up."""

    status = 500
    kind = "internal"


class Unavailable(ServingError):
    """503: the engine is not ready, shutting down or gone."""

    status = 503
    kind = "unavailable"


class DeadlinePassed(ServingError):
    """504: the request's time is over."""

    status = 504
    kind = "timeout"


_BY_KIND: dict[str, type[ServingError]] = {
    cls.kind: cls
    for cls in (
        BadRequest,
        NotFound,
        MethodNotAllowed,
        PayloadTooLarge,
        UnsupportedMediaType,
        Overloaded,
        InternalError,
        Unavailable,
        DeadlinePassed,
    )
}
KINDS = tuple(_BY_KIND)
"""Every ``error_type`` of a `ServingError`."""
