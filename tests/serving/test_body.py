"""Every way a body or its headers can be wrong has a short answer."""

import gzip
import time
import zlib

import pytest

from gptj_serve.errors import BadRequest, PayloadTooLarge, UnsupportedMediaType
from gptj_serve.serving import body


@pytest.mark.parametrize(
    ("content_type", "kind"),
    [
        (None, body.JSON),
        ("", body.JSON),
        ("application/json", body.JSON),
        ("Application/JSON; charset=UTF-8", body.JSON),
        ('application/json;charset="utf-8"', body.JSON),
        ("application/json; profile=x", body.JSON),
        ("text/plain", body.PLAIN),
        ("text/plain; charset=us-ascii", body.PLAIN),
    ],
)
def test_content_types_that_are_read(content_type: str | None, kind: str) -> None:
    assert body.media_type(content_type) == kind


@pytest.mark.parametrize(
    ("content_type", "named"),
    [
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded"),
        ("application/jsonlines", "application/jsonlines"),
        ("application/json; charset=latin-1", "latin-1"),
        ("text/plain; charset=utf-16", "utf-16"),
        ("nonsense", "nonsense"),
    ],
)
def test_other_content_types_are_refused_by_name(content_type: str, named: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=named):
        body.media_type(content_type)


def test_the_limit_itself_is_still_read() -> None:
    assert body.read_text(b"abcd", 4) == "abcd"
    with pytest.raises(PayloadTooLarge, match="5 bytes; at most 4"):
        body.read_text(b"abcde", 4)


def test_a_byte_order_mark_is_no_text() -> None:
    assert body.read_json(body.read_text(b"\xef\xbb\xbf{}", 10)) == {}


@pytest.mark.parametrize(
    ("data", "named"), [(b"", "empty"), (b"ab\xff", "byte 2"), (b"\xed\xa0\x80", "UTF-8")]
)
def test_bodies_that_are_no_text(data: bytes, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        body.read_text(data, 100)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1, column 2"),
        ('{"a": 1,\n "b": }', "line 2, column 7"),
        ('{"a": NaN}', "NaN"),
        ('{"a": [-Infinity]}', "-Infinity"),
        ("[" * 200_000, "nested"),
        ('{"a":' * 200_000, "nested"),
        ('{"a": ' + "9" * 5000 + "}", "digits"),
        ("'" * 2_000_000, "line 1, column 1"),
        ('"' + "x" * 2_000_000, "line 1"),
    ],
    ids=lambda value: value[:20],
)
def test_bodies_that_are_no_json(text: str, named: str) -> None:
    start_s = time.process_time()
    with pytest.raises(BadRequest, match=named) as caught:
        body.read_json(text)
    assert len(caught.value.message) < 200
    assert time.process_time() - start_s < 1


@pytest.mark.parametrize(
    ("accept", "plain"),
    [
        (None, True),
        ("", True),
        ("*/*", True),
        ("text/plain", True),
        ("text/*;q=0.5, application/json;q=0.4", True),
        ("application/json", False),
        ("application/json, text/plain;q=0.9", False),
        ("text/plain;q=0, */*", False),
        ("image/png", False),
        ("text/plain;q=nonsense", True),
    ],
)
def test_who_gets_plain_text(accept: str | None, plain: bool) -> None:
    assert body.prefers_plain(accept) is plain


def deflated(data: bytes, window_bits: int) -> bytes:
    packer = zlib.compressobj(wbits=window_bits)
    return packer.compress(data) + packer.flush()


TEXT = b'{"inputs": "a"}' * 50


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        (None, TEXT),
        ("", TEXT),
        ("identity", TEXT),
        ("gzip", gzip.compress(TEXT, mtime=0)),
        (" GZip ", gzip.compress(TEXT[:80], mtime=0) + gzip.compress(TEXT[80:], mtime=0)),
        ("x-gzip", gzip.compress(TEXT, mtime=0)),
        ("deflate", deflated(TEXT, zlib.MAX_WBITS)),
        ("deflate", deflated(TEXT, -zlib.MAX_WBITS)),
    ],
)
def test_a_compressed_body_is_inflated(encoding: str | None, data: bytes) -> None:
    assert body.decoded(data, encoding, len(TEXT)) == TEXT


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_has_the_limit_of_a_plain_one(encoding: str) -> None:
    compress = gzip.compress if encoding == "gzip" else zlib.compress
    with pytest.raises(PayloadTooLarge, match=f"more than {len(TEXT) - 1} bytes when inflated"):
        body.decoded(compress(TEXT), encoding, len(TEXT) - 1)
    halves = gzip.compress(TEXT) * 2
    with pytest.raises(PayloadTooLarge):
        body.decoded(halves, "gzip", len(TEXT) * 2 - 1)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("change", ["", "plain", "cut", "more"])
def test_a_body_that_is_not_compressed_as_it_says(encoding: str, change: str) -> None:
    whole = gzip.compress(TEXT) if encoding == "gzip" else zlib.compress(TEXT)
    data = {"": b"", "plain": TEXT, "cut": whole[:-1], "more": whole + b"x"}[change]
    with pytest.raises(BadRequest, match=f"not {encoding}"):
        body.decoded(data, encoding, 10_000)


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_an_encoding_that_is_not_read(encoding: str) -> None:
    with pytest.raises(UnsupportedMediaType, match=f"'{encoding}' is not read here; send gzip"):
        body.decoded(TEXT, encoding, 10_000)
