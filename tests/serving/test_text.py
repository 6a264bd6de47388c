"""Tokens become text exactly as the tokenizer's own decoder would have it, but one by one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from gptj_serve.errors import StartupError
from gptj_serve.serving.text import Detokenizer, Tokenizer
from support.serving_fakes import END_OF_TEXT, backend, tokenizer

KNOWN_IDS = st.integers(0, backend().get_vocab_size() - 1)


BYTE_IDS = {tokenizer().token_bytes(token_id): token_id for token_id in range(backend().get_vocab_size())}


def incrementally(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer())
    forms = map(tokenizer().form, ids)
    return [detokenizer.push(form)[0] for form in forms if not form.special]


def incomplete_tail(ids: list[int]) -> bytes:
    """The bytes at the end that begin a character and do not finish it."""
    data = b"".join(tokenizer().token_bytes(token_id) for token_id in ids if token_id != 0)
    if len(data) > 1 and data[-2] == 0xED and 0xA0 <= data[-1] <= 0xBF:
        return data[-2:]  # two thirds of a surrogate: Python's decoder waits, though it is wrong already
    for tail in (data[-3:], data[-2:], data[-1:]):
        try:
            tail.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start == 0:
                return tail
    return b""


@settings(max_examples=150)
@given(st.text(max_size=60))
def test_text_survives_encoding_and_incremental_decoding(text: str) -> None:
    assert "".join(incrementally(list(tokenizer().encode(text)))) == text.replace(END_OF_TEXT, "")


@settings(max_examples=500)
@example([BYTE_IDS[b"\xed"], BYTE_IDS[b"\xa1"]])
@given(st.lists(KNOWN_IDS, max_size=20))
def test_random_tokens_decode_as_all_at_once(ids: list[int]) -> None:
    whole = backend().decode(ids, skip_special_tokens=True)
    unfinished = incomplete_tail(ids).decode("utf-8", "replace")
    assert "".join(incrementally(ids)) + unfinished == whole


@settings(max_examples=100)
@given(st.text(alphabet="aé日😀", max_size=12))
def test_bytes_one_by_one_never_give_half_a_character(text: str) -> None:
    pieces = incrementally([BYTE_IDS[bytes([byte])] for byte in text.encode()])
    assert all(len(piece) <= 1 and piece != "\ufffd" for piece in pieces)
    assert "".join(pieces) == text


def test_an_incomplete_character_at_the_end_is_held_back() -> None:
    smile = "😀".encode()
    assert incrementally([BYTE_IDS[b"a"], *(BYTE_IDS[smile[i : i + 1]] for i in range(3))]) == [
        "a",
        "",
        "",
        "",
    ]


def test_single_tokens_read_as_the_decoder_reads_them() -> None:
    for token_id in range(backend().get_vocab_size()):
        assert tokenizer().token_text(token_id) == backend().decode([token_id], skip_special_tokens=False)


def test_ids_that_the_tokenizer_does_not_know_are_no_text() -> None:
    unknown = backend().get_vocab_size()
    (hello,) = backend().encode("Hello").ids
    assert incrementally([hello, unknown, 50399, hello]) == ["Hello", "", "", "Hello"]
    assert tokenizer().token_text(unknown) == ""


def test_added_tokens_are_told_from_special_ones() -> None:
    extra = backend().token_to_id("<|extratoken_1|>")
    assert incrementally([extra]) == ["<|extratoken_1|>"]
    assert tokenizer().is_special(0)
    assert not tokenizer().is_special(extra)
    assert tokenizer().token_text(0) == END_OF_TEXT


def test_a_prompt_that_spells_a_special_token_has_that_token() -> None:
    assert tokenizer().encode(f"Hello{END_OF_TEXT}Hello")[1] == 0
    assert 0 not in tokenizer().encode("Hello")


def test_what_the_tokenizer_adds_to_prompts_can_be_left_out() -> None:
    copy = Backend.from_str(backend().to_str())
    copy.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    hello = tokenizer().encode("Hello")
    assert Tokenizer(copy).encode("Hello") == (0, *hello)
    assert Tokenizer(copy).encode("Hello", add_special_tokens=False) == hello


@given(st.text(max_size=80))
def test_the_lower_bound_of_tokens_holds(text: str) -> None:
    assert tokenizer().min_num_tokens(text) <= len(tokenizer().encode(text))


def test_the_lower_bound_counts_bytes() -> None:
    longest = max(len(tokenizer().token_bytes(token_id)) for token_id in range(backend().get_vocab_size()))
    assert tokenizer().min_num_tokens("日" * 1000) == -(-3000 // longest)


def test_saved_truncation_and_padding_are_off(tmp_path: Path) -> None:
    copy = Backend.from_str(backend().to_str())
    copy.enable_truncation(2)
    copy.enable_padding(length=9)
    copy.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    text = "The cat sat on the mat"
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer().encode(text)
    assert len(tokenizer().encode(text)) > 2


@pytest.mark.parametrize(
    "parts",
    [
        [decoders.ByteLevel()],
        [decoders.ByteLevel(), decoders.Fuse()],
        [decoders.Replace("H", "J"), decoders.ByteLevel()],
        [decoders.Strip("H", 1, 0), decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])],
    ],
)
def test_decoders_in_sequences(parts: list[Any]) -> None:
    copy = Backend.from_str(backend().to_str())
    copy.decoder = decoders.Sequence(parts)
    ids = copy.encode("Hello Hello 日本 <|extratoken_1|>").ids
    assert Tokenizer(copy).decode(ids) == copy.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), "ByteLevel, Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.ByteLevel()]), "Fuse, ByteLevel"),
        (None, "missing"),
    ],
)
def test_other_kinds_of_decoder_are_refused(decoder: Any, named: str) -> None:
    copy = Backend.from_str(backend().to_str())
    copy.decoder = decoder
    with pytest.raises(StartupError, match=f"decoder is {named}; only ByteLevel"):
        Tokenizer(copy)


@pytest.mark.parametrize("content", ["é", "Größe", "naïve café", "日本", "Ã©", "Ġtext", "<|im_end|>"])
@pytest.mark.parametrize("special", [False, True])
def test_an_added_token_has_no_broken_character(content: str, special: bool) -> None:
    """The library reads some as bytes: where that makes no text, the token is what prompts have it for."""
    copy = Backend.from_str(backend().to_str())
    add = copy.add_special_tokens if special else copy.add_tokens
    add([AddedToken(content, normalized=False, special=special)])
    (token_id,) = Tokenizer(copy).encode(content)
    text = copy.decode([token_id], skip_special_tokens=False)
    assert Tokenizer(copy).token_text(token_id) == (content if "\ufffd" in text else text)


def test_an_added_token_that_is_also_a_byte() -> None:
    """It has the id of the byte, and is the byte only where that makes a character."""
    copy = Backend.from_str(backend().to_str())
    copy.add_tokens([AddedToken(char, normalized=False) for char in "é¡"])
    added = Tokenizer(copy)
    for text in ("é", "aé", "éb éé¡ ¡", "鷗é鷗", "é日", "x\u00a1\u2021"):
        ids = [token_id for char in text for token_id in added.encode(char)]
        detokenizer = Detokenizer(added)
        assert (
            "".join(detokenizer.push(form)[0] for form in map(added.form, ids)) + detokenizer.finish() == text
        )
    unfinished = Detokenizer(added)
    halves = [added.form(BYTE_IDS[bytes([byte])]) for byte in "日".encode()[:2]]
    assert [unfinished.push(half)[0] for half in halves] == ["", ""]
    assert unfinished.finish() == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda copy: copy.add_tokens([AddedToken("<mask>", lstrip=True)]),
        lambda copy: setattr(copy, "normalizer", normalizers.Strip()),
        lambda copy: setattr(copy, "pre_tokenizer", _leaving_out_spaces()),
    ],
)
def test_there_is_no_lower_bound_where_text_is_left_out(change: Callable[[Backend], Any]) -> None:
    copy = Backend.from_str(backend().to_str())
    change(copy)
    text = " " * 1000 + "<mask>"
    assert Tokenizer(copy).min_num_tokens(text) <= len(Tokenizer(copy).encode(text)) < 20


def _leaving_out_spaces() -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), byte_level])
