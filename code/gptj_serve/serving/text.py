"""Turns text into token ids and back, for byte-level BPE tokenizers such as GPT-J's."""

import codecs
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import tokenizers

from gptj_serve.serving.prompt_tail import PromptTail
from gptj_serve.serving.tokenizing import PreparedTokenizer
from gptj_serve.serving.tokenizing.prepare import prepare
from gptj_serve.serving.tokenizing.spelling import BROKEN, TokenSpelling, byte_by_char, keeps_all_text

MAX_CACHED_WORDS = 2048


class TokenForm(NamedTuple):
    """A token as text.

    Attributes:
        data: The bytes that it stands for; empty for ids that the tokenizer does not know.
        text: Those bytes as text; U+FFFD stands for bytes that are only a part of a character.
        is_whole: Whether they are whole characters, if no character has begun before them.
        special: Whether it is a mark (such as the end of text) and not text.
    """

    data: bytes
    text: str
    is_whole: bool
    special: bool


class Tokenizer:
    """Encodes prompts and knows every token's bytes.

    Args:
        backend: A byte-level BPE tokenizer.
        eos_token_id: The token that it names as the end of a text, if it does.
        splits_special_tokens: Whether a special token's text in a prompt is text like any other.

    Raises:
        StartupError: Tokens are not spelled in bytes, so text could not be put together from them.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_id: int | None = None,
        splits_special_tokens: bool = False,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = splits_special_tokens
        added = backend.get_added_tokens_decoder()
        vocab = backend.get_vocab(with_added_tokens=False)
        self.backend = backend
        self.eos_token_id = eos_token_id
        self._spelling = TokenSpelling(backend)
        self.errors = self._spelling.errors
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._forms: dict[int, TokenForm] = {}
        self._longest_token_bytes = max(
            max(map(len, vocab), default=1),
            max((len(token.content.encode()) for token in added.values()), default=1),
        )
        # a text that loses characters on its way to tokens has fewer of them
        self._may_shorten = (
            backend.normalizer is not None
            or any(token.lstrip or token.rstrip for token in added.values())
            or not keeps_all_text(backend.pre_tokenizer)
            or not all(char in vocab for char in byte_by_char())
        )
        self._tails = {
            added: PromptTail(
                backend, functools.partial(self.encode, add_special_tokens=added), self._longest_token_bytes
            )
            for added in (False, True)
        }
        _bound_cache(backend)

    @staticmethod
    def load(model_dir: Path) -> "Tokenizer":
        """Load a model directory's tokenizer, as Transformers' ``AutoTokenizer`` would.

        It takes seconds if Transformers itself has to be asked (`gptj_serve.serving.tokenizing`).

        Raises:
            StartupError: Files are missing or cannot be read; the message says which and why.
        """
        return Tokenizer.of(prepare(model_dir))

    @staticmethod
    def of(prepared: PreparedTokenizer) -> "Tokenizer":
        """The tokenizer that was made from a directory's files.

        Raises:
            StartupError: It is none that can be used here.
        """
        return Tokenizer(
            tokenizers.Tokenizer.from_str(prepared.definition),
            prepared.eos_token_id,
            prepared.splits_special_tokens,
        )

    def encode(self, text: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The ids of well-formed Unicode.

        Args:
            text: A prompt.
            add_special_tokens: Include what the tokenizer adds to prompts: usually nothing, or a first token.
        """
        # `encode` would also compute offsets, which nobody reads
        (encoding,) = self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def encode_tail(self, text: str, num_tokens: int, add_special_tokens: bool = True) -> tuple[int, ...]:
        """The last of the ids that `encode` gives, at least ``num_tokens`` if it has as many.

        Raises:
            ValueError: See `PromptTail.encode`.
        """
        return self._tails[add_special_tokens].encode(text, num_tokens)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of ids, special tokens included; U+FFFD stands for bytes that are no character."""
        return b"".join(map(self.token_bytes, token_ids)).decode("utf-8", self.errors)

    def min_num_tokens(self, text: str) -> int:
        """A lower bound on ``len(encode(text))`` that costs no tokenisation."""
        if self._may_shorten:
            return 0
        return -(-len(text.encode()) // self._longest_token_bytes)

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a mark (such as the end of text) and not text."""
        return token_id in self._special_ids

    def form(self, token_id: int) -> TokenForm:
        """The text of a token, which is made once for each."""
        known = self._forms.get(token_id)
        if known is None:
            data = self._spelling.to_bytes(token_id)
            text = data.decode("utf-8", self.errors)
            known = TokenForm(data, text, text.encode() == data, self.is_special(token_id))
            self._forms[token_id] = known
        return known

    def token_bytes(self, token_id: int) -> bytes:
        """See `TokenForm.data`."""
        return self.form(token_id).data

    def token_text(self, token_id: int) -> str:
        """See `TokenForm.text`."""
        return self.form(token_id).text


class Detokenizer:
    """Turns the tokens of a sequence into text one by one, each in constant time.

    The joined pieces are what decoding all ids at once gives, without an incomplete character at the end,
    which is held back until the rest of it comes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.num_chars = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokenizer.errors)
        self._is_inside_a_character = False

    def push(self, form: TokenForm) -> tuple[str, int]:
        """Take the next token.

        Returns:
            The text that became complete with it, and the character of the whole text that it begins at (that
            its first byte is a part of).
        """
        start = self.num_chars
        data, text, is_whole, _ = form
        if self._is_inside_a_character and data:
            text = self._decode(data[:1])
            # it is more than one character, so the token did not continue it
            start += len(text) if self._is_inside_a_character else len(text) - 1
            text += self._decode(data[1:])
        elif not is_whole:
            text = self._decode(data)
        self.num_chars += len(text)
        return text, start

    def finish(self) -> str:
        """End the text; returns that of bytes that were held back, unless they are a part of a character."""
        text = self._utf8.decode(b"", final=True).rstrip(BROKEN)
        self.num_chars += len(text)
        return text

    def _decode(self, data: bytes) -> str:
        text = self._utf8.decode(data)
        self._is_inside_a_character = bool(self._utf8.getstate()[0])
        return text


def _bound_cache(backend: tokenizers.Tokenizer) -> None:
    """Bound the library's cache: by default it keeps 10000 words of up to 256 characters, up to 80 MB."""
    resize = getattr(backend.model, "_resize_cache", None)
    if resize is not None:
        resize(MAX_CACHED_WORDS)
