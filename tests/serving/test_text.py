"""Tokens become text exactly as the tokenizer's own decoder would have it, but one by one."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving_fakes import END_OF_TEXT, backend, tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, processors

from gptj_serve.errors import StartupError
from gptj_serve.serving.text import Detokenizer, Tokenizer

KNOWN_IDS = st.integers(0, backend().get_vocab_size() - 1)


BYTE_IDS = {tokenizer().token_bytes(token_id): token_id for token_id in range(backend().get_vocab_size())}


def incrementally(ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer())
    return [detokenizer.push(token_id)[0] for token_id in ids if not tokenizer().is_special(token_id)]


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


def test_nothing_is_added_to_a_prompt() -> None:
    copy = Backend.from_str(backend().to_str())
    copy.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, 0)]
    )
    assert copy.encode("Hello").ids[0] == 0
    assert Tokenizer(copy).encode("Hello") == tokenizer().encode("Hello")


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
    text = "The cat sat on the mat"
    assert Tokenizer.load(tmp_path).encode(text) == tokenizer().encode(text)
    assert len(tokenizer().encode(text)) > 2


@pytest.fixture
def gpt2_files(tmp_path: Path) -> Path:
    """The same tokenizer as vocab.json, merges.txt and added_tokens.json."""
    backend().model.save(str(tmp_path))
    first = backend().token_to_id("<|extratoken_1|>")
    extra = {"<|extratoken_2|>": first + 1, "<|extratoken_1|>": first}
    (tmp_path / "added_tokens.json").write_text(json.dumps(extra))
    return tmp_path


def test_vocab_and_merges_do_without_tokenizer_json(gpt2_files: Path) -> None:
    loaded = Tokenizer.load(gpt2_files)
    for text in ("The cat sat,  on\n\nthe mat 日本語 😀", f"a{END_OF_TEXT}b<|extratoken_1|>"):
        assert loaded.encode(text) == tokenizer().encode(text)
    assert loaded.is_special(0)
    assert loaded.token_text(backend().get_vocab_size()) == "<|extratoken_2|>"


def test_tokenizer_json_comes_first(gpt2_files: Path) -> None:
    backend().save(str(gpt2_files / "tokenizer.json"))
    (gpt2_files / "vocab.json").write_text("broken")
    assert Tokenizer.load(gpt2_files).encode("Hello") == tokenizer().encode("Hello")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(gpt2_files: Path, name: str) -> None:
    (gpt2_files / name).unlink()
    with pytest.raises(StartupError, match=rf"{gpt2_files}.*tokenizer\.json.*{name}"):
        Tokenizer.load(gpt2_files)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"])
@pytest.mark.parametrize("content", [b'{"a": ', b"\xff\xfe", b"[1]"])
def test_a_corrupt_file_is_named(gpt2_files: Path, name: str, content: bytes) -> None:
    (gpt2_files / name).write_bytes(content)
    with pytest.raises(StartupError, match=name):
        Tokenizer.load(gpt2_files)


def test_added_tokens_that_leave_a_gap_are_refused(gpt2_files: Path) -> None:
    (gpt2_files / "added_tokens.json").write_text('{"<|extratoken_1|>": 777}')
    with pytest.raises(StartupError, match=r"added_tokens\.json.*777"):
        Tokenizer.load(gpt2_files)


def test_other_kinds_of_tokenizer_are_refused(tmp_path: Path) -> None:
    copy = Backend.from_str(backend().to_str())
    copy.decoder = decoders.WordPiece()
    copy.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(StartupError, match=r"tokenizer\.json.*WordPiece.*ByteLevel"):
        Tokenizer.load(tmp_path)
