"""Text to token ids and back, for byte-level BPE tokenizers as GPT-J's."""

import codecs
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from gptj_serve.errors import StartupError
from gptj_serve.serving.prompt_tail import PromptTail

END_OF_TEXT = "<|endoftext|>"
MAX_CACHED_WORDS = 2048


class Tokenizer:
    """Encodes prompts and knows every token's bytes.

    Args:
        backend: A byte-level BPE tokenizer.

    Raises:
        StartupError: Tokens are not spelled in bytes, so text could not be put together from them.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        if not isinstance(backend.decoder, decoders.ByteLevel):
            raise StartupError(f"the tokenizer's decoder is {backend.decoder!r}, only ByteLevel is supported")
        backend.no_truncation()
        backend.no_padding()
        added = backend.get_added_tokens_decoder()
        self.backend = backend
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._bytes_by_id: dict[int, bytes] = {}
        self._longest_token_bytes = max(
            max(map(len, backend.get_vocab(with_added_tokens=False)), default=1),
            max((len(token.content.encode()) for token in added.values()), default=1),
        )
        self._tail = PromptTail(backend, self.encode, self._longest_token_bytes)
        _bound_cache(backend)

    @staticmethod
    def load(model_dir: Path) -> "Tokenizer":
        """Load ``tokenizer.json``, or ``vocab.json`` and ``merges.txt`` where there is none.

        Raises:
            StartupError: Files are missing or cannot be read; says which and why.
        """
        path = model_dir / "tokenizer.json"
        if not path.exists():
            return Tokenizer(_load_gpt2_files(model_dir))
        try:
            return Tokenizer(tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8")))
        except StartupError as error:
            raise StartupError(f"{path}: {error}") from None
        except Exception as error:  # the library raises plain `Exception`
            raise StartupError(f"{path}: not a tokenizer: {error}") from None

    def encode(self, text: str) -> tuple[int, ...]:
        """The ids of well-formed Unicode; none are added to what the text says."""
        # `encode` would also compute offsets, which nobody reads
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=False)
        return tuple(encoding.ids)

    def encode_tail(self, text: str, num_tokens: int) -> tuple[int, ...]:
        """The last ids of a text, at least ``num_tokens`` if it has as many; see `PromptTail.encode`."""
        return self._tail.encode(text, num_tokens)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ids, special tokens included; U+FFFD stands for bytes that are no character."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", "replace")

    def min_num_tokens(self, text: str) -> int:
        """A lower bound on ``len(encode(text))`` that costs no tokenisation."""
        if self.backend.normalizer is not None:
            return 0  # a normalizer may shorten the text
        return -(-len(text.encode()) // self._longest_token_bytes)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a mark (such as the end of text) and not text."""
        return token_id in self._special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for: nothing for ids that the tokenizer does not know."""
        known = self._bytes_by_id.get(token_id)
        if known is None:
            known = _to_bytes(self.backend.id_to_token(token_id) or "")
            self._bytes_by_id[token_id] = known
        return known

    def token_text(self, token_id: int) -> str:
        """One token alone as text; U+FFFD stands for bytes that are only part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")


class Detokenizer:
    """Turns the tokens of one sequence into text, one by one, in constant time each.

    The pieces joined are what decoding all ids at once gives, less an incomplete character at the
    end: it is held back until the rest of it comes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.num_chars = 0
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> tuple[str, int]:
        """Take the next token.

        Returns:
            The text that became complete with it, and the character of the whole text that it begins at (that
            its first byte is a part of).
        """
        start = self.num_chars
        data = self._tokenizer.token_bytes(token_id)
        if data and self._is_inside_a_character():
            text = self._utf8.decode(data[:1])
            # more than the one character: the token did not go on with it
            start += len(text) if self._is_inside_a_character() else len(text) - 1
            text += self._utf8.decode(data[1:])
        else:
            text = self._utf8.decode(data)
        self.num_chars += len(text)
        return text, start

    def _is_inside_a_character(self) -> bool:
        return bool(self._utf8.getstate()[0])


def _bound_cache(backend: tokenizers.Tokenizer) -> None:
    """Else the library remembers 10000 words of up to 256 characters: 80 MB, if clients want it so."""
    resize = getattr(backend.model, "_resize_cache", None)
    if resize is not None:
        resize(MAX_CACHED_WORDS)


def _load_gpt2_files(model_dir: Path) -> tokenizers.Tokenizer:
    vocab_path, merges_path = model_dir / "vocab.json", model_dir / "merges.txt"
    for path in (vocab_path, merges_path):
        if not path.exists():
            raise StartupError(f"{model_dir}: no tokenizer.json, and no {path.name} to do without it")
    try:
        backend = tokenizers.Tokenizer(models.BPE.from_file(str(vocab_path), str(merges_path)))
    except Exception as error:  # the library raises plain `Exception`
        raise StartupError(f"{vocab_path}, {merges_path}: not a BPE vocabulary: {error}") from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if backend.token_to_id(END_OF_TEXT) is not None:
        backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    _add_tokens(backend, model_dir / "added_tokens.json")
    return backend


def _add_tokens(backend: tokenizers.Tokenizer, path: Path) -> None:
    """GPT-J's repository lists the tokens that fill its vocabulary up in a file of their own."""
    if not path.exists():
        return
    try:
        id_by_token: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tokens = sorted(id_by_token, key=lambda token: int(id_by_token[token]))
        backend.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    except Exception as error:
        raise StartupError(f"{path}: not a list of added tokens: {error}") from None
    for token, token_id in id_by_token.items():
        if backend.token_to_id(token) != token_id:
            raise StartupError(f"{path}: {token!r} has id {token_id}, which leaves a gap in the vocabulary")


@functools.cache
def _byte_by_char() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones stand for themselves, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


def _to_bytes(token: str) -> bytes:
    table = _byte_by_char()
    try:
        return bytes([table[char] for char in token])
    except KeyError:
        # an added token that is spelled in characters, not bytes
        return token.encode()
