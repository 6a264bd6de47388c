"""What each schema reads: names, ranges, defaults, and errors that name the field."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_serve.errors import BadRequest
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Ask
from gptj_serve.serving.parameters import Parameters


def read(document: Any) -> Ask:
    return schemas.read(json.dumps(document).encode(), "application/json", 10_000_000)


def tgi(**parameters: Any) -> Parameters:
    return read({"inputs": "Hello", "parameters": parameters}).parameters


def guide(**parameters: Any) -> Parameters:
    return read({"inputs": {"text_inputs": "Hello", "parameters": parameters}}).parameters


def refusal(document: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read(document)
    return caught.value.message


def test_defaults() -> None:
    assert tgi() == Parameters()
    assert guide() == Parameters(return_full_text=True)
    assert read({"inputs": "Hello"}).parameters == Parameters()
    assert read({"inputs": "Hello", "parameters": None, "stream": None}).parameters == Parameters()


EVERYTHING = {
    "max_new_tokens": 7,
    "min_new_tokens": 2,
    "do_sample": True,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.9,
    "typical_p": 0.8,
    "repetition_penalty": 1.2,
    "seed": 2**64 - 1,
    "num_return_sequences": 2,
    "return_full_text": True,
    "truncate": 5,
    "details": True,
}


def test_every_parameter_arrives() -> None:
    expected = Parameters(**EVERYTHING, stop=("a", "b"))
    assert tgi(**EVERYTHING, stop=["a", "b"]) == expected
    assert tgi(**EVERYTHING, stop_sequences=["a", "b"]) == expected
    assert guide(**EVERYTHING, stop=["a", "b"]) == expected
    assert tgi(stop="a").stop == ("a",)
    assert tgi(frequency_penalty=-2) == Parameters(frequency_penalty=-2.0)


def test_what_other_servers_have_arrives_in_every_schema() -> None:
    given = {
        "min_p": 0.05,
        "no_repeat_ngram_size": 3,
        "bad_words": ["a", " b"],
        "bad_words_ids": [[1], [2, 3]],
        "stop_token_ids": [5, 6],
    }
    expected = {
        **given,
        "bad_words": ("a", " b"),
        "bad_words_ids": ((1,), (2, 3)),
        "stop_token_ids": (5, 6),
        "do_sample": True,
    }
    assert tgi(**given) == Parameters(**expected)
    assert guide(**given, do_sample=True) == Parameters(**expected, return_full_text=True)
    openai = read({"prompt": "a", **given}).parameters
    assert openai == Parameters(**expected, top_k=0, max_new_tokens=16)
    for none in (
        tgi(seed=-1, top_k=-1),
        guide(seed=-1, top_k=-1.0),
        read({"prompt": "a", "seed": -1, "top_k": -1}).parameters,
    ):
        assert (none.seed, none.top_k) == (None, 0)
    assert not tgi(top_k=-1, min_p=0, seed=-1).do_sample
    assert tgi(suppress_tokens=[1, 2], begin_suppress_tokens=3) == Parameters(
        suppress_tokens=(1, 2), begin_suppress_tokens=(3,)
    )
    assert guide(no_repeat_ngram_size=2.0).no_repeat_ngram_size == 2


def test_null_is_the_default() -> None:
    assert tgi(**dict.fromkeys(EVERYTHING), stop=None) == Parameters()


WRONG_VALUES: list[tuple[str, Any, str]] = [
    ("max_new_tokens", 0, "from 1 to"),
    ("max_new_tokens", -1, "from 1 to"),
    ("max_new_tokens", True, "whole number"),
    ("max_new_tokens", "20", "whole number"),
    ("max_new_tokens", 20.0, "whole number"),
    ("max_new_tokens", 10**400, "from 1 to"),
    ("max_new_tokens", [20], "whole number"),
    ("min_new_tokens", -1, "from 0 to"),
    ("do_sample", 1, "true or false"),
    ("do_sample", "true", "true or false"),
    ("temperature", -1.5, "from 0 to"),
    ("temperature", -1e-12, "from 0 to"),
    ("temperature", True, "number"),
    ("temperature", 10**400, "number"),
    ("top_k", -2, "from 0 to 1048576, or -1, which keeps all"),
    ("min_p", 1.1, "a number from 0 to 1"),
    ("min_p", -0.1, "a number from 0 to 1"),
    ("no_repeat_ngram_size", -1, "from 0 to 100"),
    ("no_repeat_ngram_size", 101, "from 0 to 100"),
    ("bad_words", "a", "a list of at most 128 strings of 1 to 100 characters"),
    ("bad_words", [""], "of 1 to 100 characters"),
    ("bad_words", ["a"] * 129, "at most 128"),
    ("bad_words", ["\ud800"], "surrogate"),
    ("bad_words_ids", [1], "lists of 1 to 32 token ids"),
    ("bad_words_ids", [[]], "lists of 1 to 32 token ids"),
    ("bad_words_ids", [[1] * 33], "lists of 1 to 32 token ids"),
    ("bad_words_ids", [[True]], "lists of 1 to 32 token ids"),
    ("bad_words_ids", [[1]] * 129, "at most 128 lists"),
    ("stop_token_ids", "a", "a token id, 0 to"),
    ("suppress_tokens", [-1], "a token id, 0 to"),
    ("top_p", 0, "above 0 and at most 1"),
    ("top_p", 1.01, "above 0 and at most 1"),
    ("top_p", "0.5", "above 0 and at most 1"),
    ("typical_p", 0.0, "above 0 and at most 1"),
    ("repetition_penalty", 0, "from 1e-06"),
    ("stop", "", "1 to 1000 characters"),
    ("stop", ["a", ""], "1 to 1000 characters"),
    ("stop", "x" * 1001, "1 to 1000 characters"),
    ("stop", ["a"] * 17, "at most 16"),
    ("stop", [1], "must be a string"),
    ("stop", 5, "must be a string or a list"),
    ("stop", ["\ud800"], "surrogate"),
    ("seed", -2, "from 0 to 18446744073709551615, or -1, which draws one"),
    ("seed", 2**64, "from 0 to 18446744073709551615"),
    ("seed", False, "whole number"),
    ("num_return_sequences", 0, "from 1 to"),
    ("truncate", 0, "from 1 to"),
    ("details", "yes", "true or false"),
    ("num_beams", 4, "cannot reorder"),
    ("best_of", 0, "from 1 to"),
    ("best_of", 2, "must be 1 without sampling"),
    ("eos_token_id", -1, "a token id, 0 to"),
    ("eos_token_id", [1, "2"], "a token id, 0 to"),
    ("eos_token_id", [1] * 129, "a list of at most 128"),
    ("early_stopping", "always", "true or false"),
    ("max_length", 0, "from 1 to what the context holds"),
    ("prefix", "a", "not supported"),
    ("watermark", True, "not supported"),
    ("frequency_penalty", 2.1, "from -2 to 2"),
    ("frequency_penalty", -2.1, "from -2 to 2"),
    ("decoder_input_details", True, "not supported"),
    ("decoder_input_details", 0, "not supported"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), WRONG_VALUES, ids=lambda value: str(value)[:20])
def test_wrong_values_are_refused_by_name_value_and_range(name: str, value: Any, allowed: str) -> None:
    message = refusal({"inputs": "Hello", "parameters": {name: value}})
    assert message.startswith(f"parameters.{name}=")
    assert allowed in message
    assert len(message) < 300


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("name", ["temperature", "top_p", "max_new_tokens", "repetition_penalty"])
@pytest.mark.parametrize("shape", ['{"inputs": "a", %s}', '{"inputs": {"text_inputs": "a", %s}}'])
def test_numbers_that_are_none_are_refused(literal: str, name: str, shape: str) -> None:
    data = (shape % f'"parameters": {{"{name}": {literal}}}').encode()
    if (literal, name) == ("1e999", "top_p") and "text_inputs" in shape:
        # above 1 is no nucleus filter there
        assert schemas.read(data, None, 1000).parameters.top_p == 1.0
        return
    with pytest.raises(BadRequest):
        schemas.read(data, None, 1000)


def test_values_at_the_edges_are_taken() -> None:
    assert tgi(top_p=1, typical_p=1.0, top_k=0, seed=0, min_new_tokens=0).top_p == 1.0
    assert tgi(stop=["x" * 1000] * 16).stop[15] == "x" * 1000
    assert tgi(num_beams=1, best_of=1, watermark=False, decoder_input_details=False, stop=[]) == Parameters()


def test_unknown_names_come_with_their_nearest_neighbour() -> None:
    assert "max_new_tokens" in refusal({"inputs": "a", "parameters": {"max_new_token": 5}})
    assert refusal({"inputs": "a", "parameters": {"temprature": 1}}).endswith("did you mean temperature?")
    assert "parameters.max_time" in refusal({"inputs": "a", "parameters": {"max_time": 1}})
    assert "body.parameter: no such field; did you mean parameters?" in refusal(
        {"inputs": "a", "parameter": {}}
    )
    message = refusal({"inputs": {"text_inputs": "a", "parameters": {"min_token": 1}}})
    assert message == "inputs.parameters.min_token: no such field; did you mean min_tokens?"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"inputs": "a", "prompts": "b"},
            "body.prompts: no such field; there are inputs, parameters, stream, add_special_tokens, options",
        ),
        # too many to list, and none that is nearly the same
        ({"inputs": "a", "parameters": {"top_n": 3}}, "parameters.top_n: no such field"),
        (
            {"inputs": "a", "parameters": {"presence_penalty": 1}},
            "parameters.presence_penalty: no such field",
        ),
    ],
)
def test_nothing_is_suggested_that_is_not_near(document: Any, message: str) -> None:
    assert refusal(document) == message


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"inputs": "a", "max_new_tokens": 5}, "body.max_new_tokens: belongs into parameters"),
        (
            {"inputs": "a", "max_new_token": 5},
            "body.max_new_token: no such field; did you mean max_new_tokens, which belongs into parameters?",
        ),
        (
            {"inputs": "a", "parameters": {"stream": True}},
            "parameters.stream: belongs beside parameters, not into it",
        ),
        (
            {"inputs": {"text_inputs": "a", "max_length": 5}},
            "inputs.max_length: belongs into inputs.parameters",
        ),
        (
            {"inputs": {"text_inputs": "a"}, "max_length": 5},
            "body.max_length: belongs into inputs.parameters",
        ),
        (
            {"inputs": {"parameters": {"text_inputs": "a"}}},
            "inputs.parameters.text_inputs: belongs beside inputs.parameters, not into it",
        ),
        (
            {"prompt": "a", "parameters": {"max_tokens": 5}},
            "body.parameters: is none of OpenAI's fields; what is in it belongs beside prompt",
        ),
    ],
)
def test_a_field_in_the_wrong_place_is_sent_to_the_right_one(document: Any, message: str) -> None:
    assert refusal(document) == message


@pytest.mark.parametrize("value", ["5", 0, 1 << 30, 1.5])
@pytest.mark.parametrize(
    "document",
    [
        {"inputs": "a", "parameters": {"max_new_tokens": None}},
        {"inputs": {"text_inputs": "a", "parameters": {"max_length": None}}},
        {"prompt": "a", "max_tokens": None},
    ],
    ids=["tgi", "guide", "openai"],
)
def test_new_tokens_are_bounded_by_the_context(document: Any, value: Any) -> None:
    filled = json.loads(json.dumps(document).replace("null", json.dumps(value)))
    message = refusal(filled)
    assert str(1 << 20) not in message
    if (value, "prompt" in document) != (0, True):  # which is told that nothing is scored
        assert message.endswith("must be a whole number from 1 to what the context holds")


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-320, 1e-10, 9.9e-7])
def test_a_temperature_of_nearly_0_is_greedy(temperature: float) -> None:
    given = {"do_sample": True, "temperature": temperature, "top_k": 5}
    assert tgi(**given) == Parameters(top_k=5)
    assert guide(**given) == Parameters(top_k=5, return_full_text=True)
    openai = read({"prompt": "a", "temperature": temperature}).parameters
    assert (openai.do_sample, openai.temperature) == (False, 1.0)
    assert tgi(temperature=1e-6).do_sample


@pytest.mark.parametrize("do_sample", [None, False])
@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({}, False),
        ({"temperature": 0.7}, True),
        ({"temperature": 1.3}, True),
        ({"temperature": 1.0}, False),
        ({"temperature": 1}, False),
        ({"top_k": 50}, True),
        ({"top_k": 0}, False),
        ({"top_p": 0.9}, True),
        ({"top_p": 1.0}, False),
        ({"typical_p": 0.95}, True),
        ({"typical_p": 1}, False),
        ({"repetition_penalty": 1.2, "seed": 5, "min_new_tokens": 2, "max_new_tokens": 9}, False),
        ({"temperature": 1.0, "top_p": 0.5}, True),
        ({"temperature": 0, "top_p": 0.5}, False),
    ],
)
def test_what_samples_without_do_sample_is_tgis_rule(
    given: dict[str, Any], samples: bool, do_sample: bool | None
) -> None:
    """Its server draws if one of these is there and not at the value that changes nothing."""
    asked = tgi(**given, do_sample=do_sample)
    assert asked.do_sample is samples
    assert tgi(**given, do_sample=True).do_sample is (given.get("temperature") != 0)
    assert not guide(**given, do_sample=do_sample).do_sample


def test_tgis_best_of() -> None:
    assert tgi(best_of=3, temperature=0.7).best_of == 3
    assert tgi(best_of=3, do_sample=True, num_return_sequences=2).num_candidates == 3
    assert tgi(best_of=2, do_sample=True, num_return_sequences=2).best_of is None

    def refused(stream: bool = False, **parameters: Any) -> str:
        return refusal({"inputs": "a", "parameters": parameters, "stream": stream})

    greedy = "parameters.best_of=2: must be 1 without sampling (all would be the same)"
    assert refused(best_of=2, temperature=1.0) == refused(best_of=2, top_p=0.9, temperature=0) == greedy
    assert refused(best_of=2, num_return_sequences=3, do_sample=True).endswith(
        "must be at least num_return_sequences, which is 3"
    )
    assert refused(best_of=2, top_k=5, stream=True) == "parameters.best_of=2: must be 1 with stream=true"


def test_the_pipelines_lengths_and_end_of_text() -> None:
    assert tgi(max_length=40, min_length=3) == Parameters(max_length=40, min_length=3)
    # Transformers of today, and of the guide's time
    assert tgi(max_length=40, max_new_tokens=5) == Parameters(max_new_tokens=5)
    assert guide(max_length=40, max_new_tokens=5).max_length == 40
    assert tgi(eos_token_id=5).eos_token_ids == guide(eos_token_id=[5]).eos_token_ids == (5,)
    assert tgi(eos_token_id=[5, 50256]).eos_token_ids == (5, 50256)
    assert tgi(eos_token_id=None).eos_token_ids is None
    assert read({"inputs": "a", "options": {"use_cache": False, "wait_for_model": True}}) == read(
        {"inputs": "a"}
    )
    assert refusal({"inputs": "a", "options": {"use_gpus": 1}}) == (
        "options.use_gpus: no such field; did you mean use_gpu?"
    )


def test_names_of_any_length_are_refused_quickly() -> None:
    # with this many different letters, none is too common for difflib to look at
    name = "".join(map(chr, range(33, 163))) * 20_000
    start_s = time.process_time()
    message = refusal({"inputs": "a", "parameters": {name: 1}})
    assert time.process_time() - start_s < 1
    assert len(message) < 300


def test_two_names_for_the_stop_strings() -> None:
    message = refusal({"inputs": "a", "parameters": {"stop": "a", "stop_sequences": ["b"]}})
    assert "stop_sequences" in message
    assert tgi(stop=[], stop_sequences=["b"]).stop == ("b",)


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ([], "must be a JSON object"),
        ("text", "must be a JSON object"),
        (None, "must be a JSON object"),
        ({}, "inputs: is missing"),
        ({"inputs": None}, "inputs: is missing"),
        ({"text": "a"}, "text_inputs"),
        ({"message": []}, "inputs: is missing.*text_inputs.*prompt.*messages.*text/plain"),
        ({"inputs": ["a", "b"], "stream": True}, "inputs: has 2 prompts; must be one with stream=true"),
        (
            {"inputs": "a", "stream": True, "parameters": {"num_return_sequences": 2}},
            "parameters.num_return_sequences=2: must be 1 with stream=true",
        ),
        ({"inputs": 5}, "inputs=5"),
        ({"inputs": []}, "inputs: must not be an empty list"),
        ({"inputs": ["a", 5]}, r"inputs\[1\]=5"),
        ({"inputs": ["a", None]}, r"inputs\[1\]=null"),
        ({"inputs": "a", "parameters": [1]}, r"parameters=\[...\]: must be an object"),
        ({"inputs": "a", "stream": "yes"}, 'stream="yes"'),
        ({"inputs": {}}, "inputs.text_inputs"),
        ({"inputs": {"text_inputs": ["a", {}]}}, r"inputs.text_inputs\[1\]"),
        ({"inputs": {"text_inputs": "a", "text": 1}}, "inputs.text"),
        ({"inputs": {"text_inputs": "a"}, "parameters": {}}, "body.parameters: belongs into inputs"),
        ({"inputs": {"text_inputs": "a"}, "stream": True}, "stream"),
        ({"inputs": "a", "\ud800": 1}, "no such field"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_wrong_shapes_are_refused_by_name(document: Any, named: str) -> None:
    with pytest.raises(BadRequest, match=named) as caught:
        read(document)
    caught.value.message.encode()


def test_special_tokens_may_be_left_out_of_a_prompt() -> None:
    assert read({"inputs": "a"}).adds_special_tokens
    assert read({"inputs": "a", "add_special_tokens": True}) == read({"inputs": "a"})
    assert not read({"inputs": "a", "add_special_tokens": False}).adds_special_tokens


def test_prompts_arrive_in_order() -> None:
    ask = read({"inputs": ["a", "b"], "stream": False})
    assert (ask.schema, ask.texts, ask.is_list, ask.stream) == ("tgi", ("a", "b"), True, False)
    assert read({"inputs": ["a"], "stream": True}).stream
    ask = read({"inputs": {"text_inputs": ["a"]}})
    assert (ask.schema, ask.texts, ask.is_list, ask.stream) == ("guide", ("a",), True, False)
    assert read({"inputs": {"text_inputs": "a"}}).is_list is False


def test_the_guides_old_parameters_keep_working() -> None:
    assert guide(min_tokens=5).min_new_tokens == 5
    assert guide(min_tokens=5, min_new_tokens=9).min_new_tokens == 9
    assert guide(top_p=10).top_p == guide(top_p=1.5).top_p == 1.0
    assert guide(top_p=0.5).top_p == 0.5
    assert guide(max_length=50, min_length=10) == Parameters(
        max_length=50, min_length=10, return_full_text=True
    )
    assert guide(max_new_tokens=20.0, top_k=5.0).max_new_tokens == 20
    assert guide(return_full_text=False).return_full_text is False


def test_the_pipelines_harmless_parameters_change_nothing() -> None:
    harmless = {
        "num_beams": 1,
        "early_stopping": True,
        "use_cache": True,
        "pad_token_id": 50256,
        "length_penalty": 2.0,
        "return_tensors": False,
        "clean_up_tokenization_spaces": False,
    }
    assert guide(**harmless) == guide()
    assert tgi(**harmless) == tgi()
    assert tgi(early_stopping="never", pad_token_id=[0], num_beam_groups=1) == tgi()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_beams", 4),
        ("min_tokens", -1),
        ("min_tokens", "5"),
        ("top_p", 0),
        ("top_p", -1),
        ("top_p", True),
        ("max_new_tokens", 20.5),
        ("max_length", 0),
        ("no_repeat_ngram_size", 101),
        ("clean_up_tokenization_spaces", True),
        ("bad_words_ids", [1]),
        ("max_time", 3),
    ],
)
def test_what_the_guides_schema_cannot_do_is_refused(name: str, value: Any) -> None:
    message = refusal({"inputs": {"text_inputs": "a", "parameters": {name: value}}})
    assert message.startswith(f"inputs.parameters.{name}")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = st.dictionaries(
    st.sampled_from([*EVERYTHING, "stop", "min_tokens", "max_length"]), JSON, max_size=3
)


@settings(max_examples=300)
@given(st.booleans(), st.text(max_size=3) | JSON, PARAMETERS)
def test_no_document_does_more_than_a_400(is_guide: bool, inputs: Any, parameters: Any) -> None:
    if is_guide:
        document = {"inputs": {"text_inputs": inputs, "parameters": parameters}}
    else:
        document = {"inputs": inputs, "parameters": parameters}
    with contextlib.suppress(BadRequest):
        assert read(document).texts
