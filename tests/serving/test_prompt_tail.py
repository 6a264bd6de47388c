"""The tokens of a tail are those that the whole text ends with, whatever the text."""

import copy
import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from gptj_serve import demo
from gptj_serve.serving import prompt_tail
from gptj_serve.serving.text import Tokenizer
from support.serving_fakes import backend

PIECES = [
    *"abz 09.,!'\n\t\r日語ÄéΩ😀\u00a0\u2028\u0301\x1c",
    *(
        "'s",
        "'re",
        " the",
        "  ",
        "\n\n",
        "123",
        "...",
        " 'll",
        "<a>",
        "<a",
        "bb",
        "<|endoftext|>",
        "<pad>",
        "<mask>",
    ),
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map("".join)


def with_added(add_prefix_space: bool) -> Tokenizer:
    """Added tokens that overlap, swallow spaces around them, or want no letters beside them."""
    built = tokenizers.Tokenizer(models.BPE())
    built.decoder = decoders.ByteLevel()
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    # every word of two or three pieces is a token: one that is cut anywhere has other tokens
    built.train_from_iterator(["".join(two) for two in itertools.product(PIECES, repeat=2)] * 2, trainer)
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    built.add_special_tokens([AddedToken("<mask>", lstrip=True), AddedToken("<pad>", rstrip=True)])
    built.add_tokens(
        [AddedToken("<a>"), AddedToken("bb<"), AddedToken("zz", single_word=True), AddedToken("  ")]
    )
    return Tokenizer(built)


TOKENIZERS = {False: with_added(False), True: with_added(True)}


@pytest.fixture(scope="module", autouse=True)
def short_windows() -> Iterator[None]:
    """A text of a few words is a long one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prompt_tail, "_FIRST_CHARS_PER_TOKEN", 2)
        patch.setattr(prompt_tail, "_FIRST_WINDOW_CHARS", 3)
        yield


@pytest.mark.parametrize("add_prefix_space", [False, True])
@settings(max_examples=400)
@given(text=TEXTS, num_tokens=st.integers(1, 8))
def test_a_tail_has_the_tokens_of_the_whole(add_prefix_space: bool, text: str, num_tokens: int) -> None:
    tokenizer = TOKENIZERS[add_prefix_space]
    whole, tail = tokenizer.encode(text), tokenizer.encode_tail(text, num_tokens)
    assert whole[len(whole) - len(tail) :] == tail
    assert len(tail) >= min(num_tokens, len(whole))


def test_the_rest_is_not_tokenised() -> None:
    tokenizer = TOKENIZERS[False]
    text = "In the beginning God's word, and 'twas good.\n" * 200_000
    started_s = time.process_time()
    tail = tokenizer.encode_tail(text, 5)
    assert time.process_time() - started_s < 1
    assert 5 <= len(tail) < 1000
    assert tail[-5:] == tokenizer.encode(text[-200:])[-5:]


@pytest.mark.parametrize("text", ["a" * 100_000, " " * 100_000, "日" * 70_000 + " a"])
def test_a_word_without_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a word of more than 65536 characters"):
        TOKENIZERS[False].encode_tail(text + "\n" if text[0] == " " else text, 1)


def test_what_borders_are_not_known_of_is_tokenised_whole_up_to_a_length() -> None:
    built = copy.deepcopy(backend())
    built.normalizer = normalizers.Lowercase()
    tokenizer = Tokenizer(built)
    text = "The cat sat. " * 1000
    assert tokenizer.encode_tail(text, 1) == tokenizer.encode(text)
    with pytest.raises(ValueError, match="at most 524288 can be tokenised"):
        tokenizer.encode_tail("The cat sat. " * 100_000, 1)


def test_what_the_library_remembers_is_bounded() -> None:
    tokenizer = Tokenizer.load(demo.MODEL_DIR)
    dice = random.Random(1)

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024

    before = resident_mib()
    for _ in range(6000):
        tokenizer.encode("".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=250)))
    assert resident_mib() - before < 25
