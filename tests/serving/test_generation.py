"""Events become answers: text, finish reasons, details."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import StopStringCriteria

from gptj_serve.errors import InternalError, Overloaded, ServingError, Unavailable
from gptj_serve.request import EndEvent, GenerationRequest, SamplingParams, Timings, TokenEvent
from gptj_serve.serving.generation import Answer, Generation, SequenceAssembler
from gptj_serve.serving.text import Tokenizer
from support.serving_fakes import END_OF_TEXT, backend, say, tokenizer


def assembler(*stops: str, keep_tokens: bool = True) -> SequenceAssembler:
    return SequenceAssembler(tokenizer(), stops, eos_token_ids=(0,), keep_tokens=keep_tokens)


def assemble(ids: list[int], *stops: str, reason: str = "length") -> Answer:
    one = assembler(*stops)
    pieces = [one.push(TokenEvent("r", token_id, -1.0)) for token_id in ids]
    pieces.append(one.finish(EndEvent("r", reason)))
    answer = one.answer()
    assert "".join(pieces) == answer.text
    return answer


def test_the_end_of_text_is_counted_and_reported_but_is_no_text() -> None:
    answer = assemble(say("Hello"), reason="eos_token")
    assert (answer.text, answer.finish_reason, answer.num_tokens) == ("Hello", "eos_token", 2)
    assert [(token.text, token.special) for token in answer.tokens] == [
        ("Hello", False),
        ("<|endoftext|>", True),
    ]


def test_the_models_end_is_no_text_even_if_the_tokenizer_thinks_so() -> None:
    (hello,) = backend().encode("Hello").ids
    one = SequenceAssembler(tokenizer(), (), eos_token_ids=(hello,), keep_tokens=True)
    assert one.push(TokenEvent("r", hello)) == ""
    one.finish(EndEvent("r", "eos_token"))
    assert one.answer().tokens[0].special


def test_a_stop_string_across_tokens_ends_the_answer() -> None:
    ids = list(tokenizer().encode("The cat sat on the mat. The dog sat"))
    answer = assemble(ids, "t on t", "nowhere")
    assert (answer.text, answer.finish_reason) == ("The cat sa", "stop_sequence")
    texts = "".join(token.text for token in answer.tokens)
    assert answer.num_tokens == len(answer.tokens) < len(ids)
    assert "t on t" in texts
    assert "t on t" not in "".join(token.text for token in answer.tokens[:-1])


def test_a_stop_string_inside_a_token_keeps_what_is_before_it() -> None:
    assert backend().encode(" general").tokens == ["Ġgeneral"]
    assert assemble([*tokenizer().encode("Hello general")], "ner").text == "Hello ge"


def test_a_stop_string_of_half_tokens_of_characters() -> None:
    data = "x😀y".encode()
    ids = {tokenizer().token_bytes(token_id): token_id for token_id in range(1, backend().get_vocab_size())}
    assert assemble([ids[bytes([byte])] for byte in data], "😀").text == "x"


@settings(max_examples=150)
@given(
    st.text("Theca 日😀é.", max_size=25),
    st.lists(st.text("Theca 日😀é.", min_size=1, max_size=3), max_size=2),
)
def test_no_answer_ever_has_a_stop_string(text: str, stops: list[str]) -> None:
    answer = assemble(list(tokenizer().encode(text)), *stops)
    assert text.startswith(answer.text)
    assert not any(stop in answer.text for stop in stops)
    assert (answer.finish_reason == "stop_sequence") == any(stop in text for stop in stops)


MARK = "<|im_end|>"


@functools.cache
def chat_tokenizer() -> Tokenizer:
    """With a special token that ends nothing, as fine-tuned models have them."""
    copy = Backend.from_str(backend().to_str())
    copy.add_special_tokens([AddedToken(MARK, special=True, normalized=False)])
    return Tokenizer(copy)


@pytest.mark.parametrize(
    ("said", "stops", "expected"),
    [
        (f"Hello{MARK}world", [MARK], "Hello"),
        (f"Hello{MARK} world", [f"o{MARK} w"], "Hell"),
        (f"Hello{MARK}\nHello", [f"{MARK}\n"], "Hello"),
        (f"Hello{MARK}world", ["im_"], "Hello"),
        (f"{MARK}Hello{MARK}world", [f"{MARK}world"], "Hello"),
        (f"Hello{MARK}world", ["world"], "Hello"),
        (f"Hello{MARK}world", [f"{MARK}x", "zzz"], "Helloworld"),
        (f"Hello{END_OF_TEXT}world", [END_OF_TEXT], "Hello"),
    ],
)
def test_a_stop_string_can_be_a_special_token_or_span_one(said: str, stops: list[str], expected: str) -> None:
    ids = list(chat_tokenizer().encode(said))
    one = SequenceAssembler(chat_tokenizer(), stops, eos_token_ids=(), keep_tokens=True)
    text = "".join(one.push(TokenEvent("r", token_id)) for token_id in ids)
    text += one.finish(EndEvent("r", "length"))
    assert text == one.answer().text == expected
    found = any(stop in said for stop in stops)
    assert one.answer().finish_reason == ("stop_sequence" if found else "length")
    last = ids[one.answer().num_tokens - 1]
    assert last == ids[_transformers_length(ids, stops) - 1]


def _transformers_length(ids: list[int], stops: list[str]) -> int:
    """How many tokens there are when Transformers' ``stop_strings`` ends them."""
    reference = PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer().backend)
    criteria = StopStringCriteria(reference, stops)
    for length in range(1, len(ids) + 1):
        if bool(criteria(torch.tensor([ids[:length]]), torch.zeros(1, 1))):
            return length
    return len(ids)


@pytest.mark.parametrize("skip_special", [True, False])
@pytest.mark.parametrize("keep_stop", [True, False])
def test_special_tokens_and_the_stop_string_come_out_if_asked_for(
    skip_special: bool, keep_stop: bool
) -> None:
    ids = chat_tokenizer().encode(f"a{MARK}b{MARK}.c")
    one = SequenceAssembler(
        chat_tokenizer(), [f"{MARK}."], (), keep_tokens=False, keep_stop=keep_stop, skip_special=skip_special
    )
    text = "".join(one.push(TokenEvent("r", token_id)) for token_id in ids)
    assert text == ("ab" if skip_special else f"a{MARK}b") + (f"{MARK}." if keep_stop else "")


@pytest.mark.parametrize(
    ("keep_stop", "skip_special", "text"),
    [(False, True, "Hello"), (False, False, "Hello"), (True, True, "Hello"), (True, False, f"Hello{MARK}")],
)
def test_the_token_that_ends_the_sequence(keep_stop: bool, skip_special: bool, text: str) -> None:
    """As vLLM has it: a special one is shown where both are asked for."""
    hello, mark = chat_tokenizer().encode(f"Hello{MARK}")
    one = SequenceAssembler(chat_tokenizer(), (), (mark,), False, keep_stop, skip_special)
    pieces = [one.push(TokenEvent("r", token_id)) for token_id in (hello, mark)]
    assert "".join(pieces) + one.finish(EndEvent("r", "eos_token")) == text


@pytest.mark.parametrize("stop", [f"o{END_OF_TEXT}", "o<", END_OF_TEXT, "<"])
@pytest.mark.parametrize("keep_stop", [True, False])
def test_the_token_that_ends_the_sequence_is_no_part_of_a_stop_string(stop: str, keep_stop: bool) -> None:
    one = SequenceAssembler(tokenizer(), [stop], (0,), False, keep_stop, skip_special=False)
    text = "".join(one.push(TokenEvent("r", token_id)) for token_id in say("Hello"))
    text += one.finish(EndEvent("r", "eos_token"))
    assert text == one.answer().text == "Hello" + (END_OF_TEXT if keep_stop else "")
    assert one.answer().finish_reason == "eos_token"


def test_a_character_goes_on_behind_a_hidden_token() -> None:
    ids = {tokenizer().token_bytes(token_id): token_id for token_id in range(1, backend().get_vocab_size())}
    first, *rest = (ids[bytes([byte])] for byte in "é".encode())
    assert assemble([first, 0, *rest]).text == "é"


def test_what_looked_like_a_stop_string_comes_with_the_end() -> None:
    one = assembler("mat!")
    ids = tokenizer().encode("The mat")
    assert "".join(one.push(TokenEvent("r", token_id)) for token_id in ids) == "The "
    assert one.finish(EndEvent("r", "length")) == "mat"


def test_nothing_counts_after_a_stop_string() -> None:
    one = assembler("Hello")
    (hello,) = tokenizer().encode("Hello")
    one.push(TokenEvent("r", hello))
    assert one.push(TokenEvent("r", hello)) == ""
    assert one.finish(EndEvent("r", "failed", InternalError("too late to matter"))) == ""
    assert (one.answer().num_tokens, one.answer().finish_reason) == (1, "stop_sequence")


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (EndEvent("r", "failed", Overloaded("full", retry_after_s=3)), Overloaded),
        (EndEvent("r", "failed"), InternalError),
        (EndEvent("r", "cancelled"), Unavailable),
    ],
)
def test_failed_and_cancelled_sequences_raise(end: EndEvent, error: type[ServingError]) -> None:
    with pytest.raises(error):
        assembler().finish(end)


def test_a_sequence_without_end_has_no_answer() -> None:
    with pytest.raises(InternalError):
        assembler().answer()


def test_log_probabilities_are_what_json_can_hold() -> None:
    one = assembler()
    for logprob in (-0.5, -math.inf, math.nan, None):
        one.push(TokenEvent("r", 5, logprob))
    one.finish(EndEvent("r", "length"))
    assert [token.logprob for token in one.answer().tokens] == [-0.5, None, None, None]


def test_tokens_are_kept_only_if_asked_for() -> None:
    one = assembler(keep_tokens=False)
    one.push(TokenEvent("r", 5))
    one.finish(EndEvent("r", "length"))
    assert (one.answer().tokens, one.answer().num_tokens) == ((), 1)


def test_sequences_are_told_apart_and_end_one_by_one() -> None:
    requests = [GenerationRequest(name, (1,), SamplingParams(9)) for name in ("a", "b")]
    generation = Generation(requests, [assembler("cat"), assembler("cat")])
    hello, cat = tokenizer().encode("Hello cat")
    assert generation.push(TokenEvent("b", hello)).index == 1
    stopped = generation.push(TokenEvent("a", cat))
    assert (stopped.index, stopped.stop_found, stopped.finish_reason) == (0, True, "stop_sequence")
    late = generation.push(EndEvent("a", "cancelled", timings=Timings(0.5, 0.6, 0.7)))
    assert (late.stop_found, late.finish_reason, generation.done) == (False, None, False)
    end = generation.push(EndEvent("b", "length", timings=Timings(0.25, 0.6, 0.7)))
    assert (end.stop_found, end.finish_reason, generation.done) == (False, "length", True)
    assert [answer.text for answer in generation.answers()] == [" ", "Hello"]
    assert generation.queue_s == 0.5
