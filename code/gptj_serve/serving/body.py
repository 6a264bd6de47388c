"""Reads text or JSON from a body's bytes and headers, and names every way in which a body can be wrong."""

import json
import zlib
from typing import Any, NoReturn

from gptj_serve.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType

JSON = "application/json"
PLAIN = "text/plain"
PLAIN_UTF8 = "text/plain; charset=utf-8"
_ENCODINGS = ("gzip", "x-gzip", "deflate")
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")


def compact(document: Any) -> bytes:
    """JSON in ASCII, without needless spaces."""
    return json.dumps(document, separators=(",", ":")).encode()


def media_type(content_type: str | None) -> str:
    """The media type, `JSON` or `PLAIN`; no content type at all means JSON.

    Raises:
        UnsupportedMediaType: Another type, or a charset other than UTF-8.
    """
    kind, options = _options(content_type or JSON)
    kind = kind or JSON
    if kind not in (JSON, PLAIN):
        raise UnsupportedMediaType(f"content type {kind[:80]!r} is not read here; send {JSON} or {PLAIN}")
    charset = options.get("charset", "utf-8").strip("\"'").lower()
    if charset not in _CHARSETS:
        raise UnsupportedMediaType(f"charset {charset[:80]!r} is not read here; send utf-8")
    return kind


def _options(media_type: str) -> tuple[str, dict[str, str]]:
    """A media type's name, and its parameters by name."""
    kind, *options = media_type.split(";")
    pairs = (option.partition("=") for option in options)
    return kind.strip().lower(), {name.strip().lower(): value.strip() for name, _, value in pairs}


def decoded(body: bytes, encoding: str | None, max_bytes: int) -> bytes:
    """The body without its ``Content-Encoding``; no more of it is inflated than may be read.

    Raises:
        PayloadTooLarge: It has more than ``max_bytes`` when inflated.
        BadRequest: It is not what the header says, or is cut off.
        UnsupportedMediaType: The encoding is not read here.
    """
    name = _name(encoding)
    if name in ("", "identity"):
        return body
    if name not in _ENCODINGS:
        raise UnsupportedMediaType(
            f"content-encoding {name[:80]!r} is not read here; send {', '.join(_ENCODINGS)} or none"
        )
    try:
        return _inflated(body, name, max_bytes)
    except zlib.error:
        raise BadRequest(f"the body is not {name}, as its content-encoding says") from None


def beginning(body: bytes, encoding: str | None, num_bytes: int) -> bytes:
    """The beginning of an inflated body, empty if it cannot be inflated; all of a body without encoding."""
    name = _name(encoding)
    if name not in _ENCODINGS:
        return body
    try:
        return zlib.decompressobj(_window_bits(body, name)).decompress(body, num_bytes)
    except zlib.error:
        return b""


def _name(encoding: str | None) -> str:
    return (encoding or "").strip().lower()


def _inflated(body: bytes, name: str, max_bytes: int) -> bytes:
    pieces: list[bytes] = []
    num_bytes, rest = 0, body
    while rest or not pieces:  # gzip may have several members, one after the other
        inflater = zlib.decompressobj(_window_bits(rest, name))
        pieces.append(inflater.decompress(rest, max_bytes - num_bytes + 1))
        num_bytes += len(pieces[-1])
        if num_bytes > max_bytes:
            raise PayloadTooLarge(f"the body has more than {max_bytes} bytes when inflated")
        rest = inflater.unused_data
        if not inflater.eof or (rest and name == "deflate"):
            raise zlib.error
    return b"".join(pieces)


def _window_bits(data: bytes, name: str) -> int:
    """The number that tells `zlib` the format. Some clients leave out the header of deflated data."""
    if name != "deflate":
        return zlib.MAX_WBITS + 16
    has_header = len(data) >= 2 and data[0] & 0x0F == 8 and int.from_bytes(data[:2], "big") % 31 == 0
    return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS


def read_text(body: bytes, max_bytes: int) -> str:
    """The body as text, without a byte order mark.

    Raises:
        PayloadTooLarge: It has more than ``max_bytes``.
        BadRequest: It is empty, or not UTF-8.
    """
    if len(body) > max_bytes:
        raise PayloadTooLarge(f"the body has {len(body)} bytes; at most {max_bytes} are read")
    if not body:
        raise BadRequest("the body is empty")
    try:
        return bytes(body).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: byte {error.start} is wrong") from None


def read_json(text: str) -> Any:
    """Parse strict JSON: no NaN, no Infinity.

    Raises:
        BadRequest: It is not JSON; the message says where.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise BadRequest(
            f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    except RecursionError:
        raise BadRequest("the body is not usable JSON: it is nested too deeply") from None
    except ValueError:
        # Python refuses to convert integers of thousands of digits, which would take quadratic time
        raise BadRequest("the body is not usable JSON: a number has too many digits") from None


def prefers_plain(accept: str | None) -> bool:
    """Whether an ``Accept`` header accepts plain text, and ranks it at least as high as JSON."""
    if not (accept or "").strip():
        return True
    named = map(_options, (accept or "").split(","))
    ranks = {kind: _weight(options.get("q", "1")) for kind, options in named}
    plain = ranks.get(PLAIN, ranks.get("text/*", ranks.get("*/*", 0.0)))
    return plain > 0 and plain >= ranks.get(JSON, ranks.get("application/*", ranks.get("*/*", 0.0)))


def _weight(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 1.0


def _refuse_constant(name: str) -> NoReturn:
    raise BadRequest(f"the body is not JSON: {name} is no JSON number")
