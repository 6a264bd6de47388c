"""Knows how byte-level BPE spells the bytes that its tokens stand for."""

import codecs
import functools
import json
from typing import Any

import tokenizers

from gptj_serve.errors import StartupError

BROKEN = "\ufffd"
"""The character that stands for bytes that are no character."""

_BEFORE = ("Replace", "Strip")
"""Decoders that look at one token at a time, so their results are known beforehand."""
_AFTER = ("Fuse",)
"""Decoders that change nothing of text that is already put together."""


class TokenSpelling:
    """Knows the bytes of every token, as the tokenizer's own decoder would put them together.

    Args:
        backend: A tokenizer.

    Raises:
        StartupError: Its decoder is not byte-level, or looks at several tokens together.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._before = _decoder_before_bytes(backend.decoder)
        vocab = backend.get_vocab(with_added_tokens=False)
        # the characters of added tokens such as "Größe" also spell bytes. The library takes them for these,
        # and a text with the token would have a broken character
        ambiguous = {
            token_id: token.content
            for token_id, token in backend.get_added_tokens_decoder().items()
            if not _is_text(_bytes(token.content))
        }
        self._in_characters = {token_id for token_id, token in ambiguous.items() if token not in vocab}
        self.errors = _errors("".join(token for token in ambiguous.values() if len(token) == 1))
        """How bytes that are no UTF-8 are decoded."""

    def to_bytes(self, token_id: int) -> bytes:
        """A token's bytes; empty for ids that the tokenizer does not know."""
        token = self._backend.id_to_token(token_id) or ""
        if token_id in self._in_characters:
            return token.encode()
        return _bytes(self._before.decode([token]) if self._before is not None and token else token)


@functools.cache
def byte_by_char() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable bytes stand for themselves, the others are from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


def _errors(chars: str) -> str:
    """How to decode bytes where added tokens are one character that also spells a byte of the vocabulary.

    Such a token has the byte's id. It is the byte if that makes a character with its neighbours, and
    otherwise itself; an error handler is only called in the latter case.
    """
    if not chars:
        return "replace"
    char_by_byte = {byte_by_char()[char]: char for char in chars}

    def handle(error: UnicodeError) -> tuple[str, int]:
        if not isinstance(error, UnicodeDecodeError):
            raise error
        broken = error.object[error.start : error.end]
        text = "".join(char_by_byte.get(byte, BROKEN) for byte in broken)
        return text if text.strip(BROKEN) else BROKEN, error.end

    name = f"gptj_serve.added_tokens.{chars}".encode("ascii", "backslashreplace").decode()
    codecs.register_error(name, handle)
    return name


def keeps_all_text(pre_tokenizer: Any) -> bool:
    """Whether a pre-tokenizer is known to leave no character of a text out."""
    if pre_tokenizer is None:
        return True
    parts = _flat(json.loads(pre_tokenizer.__getstate__()))
    return all(
        part["type"] in ("ByteLevel", "Split", "Digits") and part.get("behavior") != "Removed"
        for part in parts
    )


def _bytes(spelled: str) -> bytes:
    table = byte_by_char()
    try:
        return bytes([table[char] for char in spelled])
    except KeyError:
        return spelled.encode()  # this is an added token, which is spelled in characters, not bytes


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decoder_before_bytes(decoder: Any) -> tokenizers.decoders.Decoder | None:
    """The decoder that changes each token before its characters are read as bytes; None if there is none."""
    described = json.loads(decoder.__getstate__()) if decoder is not None else {"type": "missing"}
    parts = list(_flat(described))
    kinds = [part["type"] for part in parts]
    place = kinds.index("ByteLevel") if "ByteLevel" in kinds else len(kinds)
    if place == len(kinds) or not {*kinds[:place]} <= {*_BEFORE} or not {*kinds[place + 1 :]} <= {*_AFTER}:
        raise StartupError(
            f"the tokenizer's decoder is {', '.join(kinds)}; only ByteLevel is supported, alone or in a"
            f" sequence with {' and '.join(_BEFORE)} before it or {_AFTER[0]} after it"
        )
    if place == 0:
        return None
    before = tokenizers.decoders.Sequence([])
    before.__setstate__(json.dumps({"type": "Sequence", "decoders": parts[:place]}).encode())
    return before


def _flat(described: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of a decoder or pre-tokenizer, also those of nested sequences."""
    if described["type"] != "Sequence":
        return [described]
    inner = described.get("decoders") or described.get("pretokenizers") or ()
    return [part for one in inner for part in _flat(one)]
