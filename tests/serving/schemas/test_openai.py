"""OpenAI's completions: what is read, what is answered."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from gptj_serve.errors import (
    BadRequest,
    ContextOverflow,
    InternalError,
    Overloaded,
    PayloadTooLarge,
    ServingError,
    UnsupportedMediaType,
)
from gptj_serve.models.model_name import find_model_name
from gptj_serve.request import EndEvent, GenerationRequest, TokenEvent
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer, LikelyToken, SequenceAssembler, Token
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.schemas import openai, openai_logprobs
from gptj_serve.serving.service import Service
from gptj_serve.settings import Settings
from support.serving_fakes import FakeClient, model_info, say, tokenizer


def read(**fields: Any) -> Ask:
    data = json.dumps({"prompt": "Hello", **fields}).encode()
    return schemas.read_completions(data, "application/json", 10_000_000)


def service(client: FakeClient | None = None) -> Service:
    return Service(client or FakeClient(), tokenizer(), 6 << 20, 30.0, streaming=True)


def parse(client: FakeClient | None = None, **fields: Any) -> Call:
    data = json.dumps({"prompt": "The", **fields}).encode()
    return service(client).parse(data, "application/json")


def ask(client: FakeClient | None = None, **fields: Any) -> Any:
    call = parse(client, **fields)
    result = service(client).run(call, "req")
    data, content_type = schemas.render(call, result.answers, "req", result.num_generated_tokens)
    assert content_type == "application/json"
    return json.loads(data)


DEFAULTS = Parameters(max_new_tokens=16, do_sample=True, top_k=0)


def test_it_samples_from_everything_unless_told_otherwise() -> None:
    assert read().parameters == DEFAULTS
    assert read(temperature=None, max_tokens=None, stop=None, n=None, logprobs=None).parameters == DEFAULTS
    greedy = read(temperature=0).parameters
    assert (greedy.do_sample, greedy.temperature) == (False, 1.0)


def test_every_field_arrives() -> None:
    given = read(
        model="whatever",
        user="me",
        suffix="",
        max_tokens=7,
        min_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        typical_p=0.8,
        repetition_penalty=1.2,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"0": -100, "50256": 1.5},
        stop=["a", "b"],
        seed=2**64 - 1,
        n=2,
        best_of=3,
        logprobs=5,
    )
    assert given.parameters == Parameters(
        max_new_tokens=7,
        min_new_tokens=2,
        do_sample=True,
        temperature=0.5,
        top_p=0.9,
        top_k=3,
        typical_p=0.8,
        repetition_penalty=1.2,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        logit_bias=((0, -100.0), (50256, 1.5)),
        stop=("a", "b"),
        seed=2**64 - 1,
        num_return_sequences=2,
        best_of=3,
        details=True,
        num_top_logprobs=5,
    )


def test_fields_that_say_little() -> None:
    assert read(echo=True).parameters.return_full_text
    assert read(stream=True, stream_options={"include_usage": True}).parameters.include_usage
    both = read(
        stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
    ).parameters
    assert (both.include_usage, both.continuous_usage) == (True, True)
    alone = read(stream=True, stream_options={"continuous_usage_stats": True}).parameters
    assert (alone.include_usage, alone.continuous_usage) == (False, False)
    assert read(ignore_eos=True).parameters.ignore_eos
    assert not read(ignore_eos=False).parameters.ignore_eos
    assert read(n=2, best_of=2).parameters.best_of is None
    assert read(n=2, best_of=2, stream=True).stream
    zero = read(logprobs=0).parameters
    assert (zero.details, zero.num_top_logprobs) == (True, 0)


@pytest.mark.parametrize(
    ("prompt", "texts", "is_list"),
    [
        ("a", ("a",), False),
        (["a", "b"], ("a", "b"), True),
        ([1, 0], ((1, 0),), False),
        ([[1], [2, 3]], ((1,), (2, 3)), True),
        (["a", [1]], ("a", (1,)), True),
    ],
)
def test_prompts_are_text_or_token_ids(prompt: Any, texts: Any, is_list: bool) -> None:
    given = read(prompt=prompt)
    assert (given.schema, given.texts, given.is_list) == ("openai", texts, is_list)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt: is missing"),
    ({"prompt": 5}, "prompt=5: must be"),
    ({"prompt": {}}, "prompt={}: must be"),
    ({"prompt": []}, "prompt: must not be an empty list"),
    ({"prompt": [[]]}, "prompt[0]: must not be an empty list"),
    ({"prompt": [1, "a"]}, 'prompt[1]="a": must be a token id'),
    ({"prompt": [1, True]}, "prompt[1]=true: must be a token id"),
    ({"prompt": [1, -1]}, "prompt[1]=-1: must be a token id"),
    ({"prompt": [True]}, "prompt[0]=true: must be a string"),
    ({"prompt": ["a", 1]}, "prompt[1]=1: must be a string"),
    ({"prompt": [[1], [1.0]]}, "prompt[1][0]=1.0: must be a token id"),
    ({"model": 1}, "body.model=1: must be a string"),
    ({"max_tokens": 0}, "body.max_tokens=0: must be at least 1; prompts are not scored"),
    ({"max_tokens": -1}, "body.max_tokens=-1: must be a whole number from 1"),
    ({"max_tokens": True}, "body.max_tokens=true: must be a whole number"),
    ({"temperature": 2.1}, "body.temperature=2.1: must be a number from 0 to 2"),
    ({"temperature": -1}, "body.temperature=-1: must be a number from 0 to 2"),
    ({"temperature": True}, "body.temperature=true: must be a number from 0 to 2"),
    ({"top_p": 0}, "body.top_p=0: must be a number above 0"),
    ({"n": 0}, "body.n=0: must be a whole number from 1"),
    ({"n": 2, "temperature": 0}, "body.n=2: must be 1 with temperature 0"),
    ({"best_of": 2, "temperature": 0}, "body.best_of=2: must be 1 with temperature 0"),
    ({"n": 3, "best_of": 2}, "body.best_of=2: must be at least n, which is 3"),
    ({"n": 2, "best_of": 3, "stream": True}, "body.best_of=3: must be n, which is 2, with stream=true"),
    ({"stop": ["a"] * 17}, "body.stop=[...]: must be a string or a list of at most 16"),
    ({"stop": ""}, 'body.stop="": each must be'),
    ({"stream": 1}, "body.stream=1: must be true or false"),
    ({"stream_options": {}}, "body.stream_options: is for streams only"),
    ({"stream": True, "stream_options": 1}, "body.stream_options=1: must be an object"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "body.stream_options.include_usage=1: must"),
    ({"ignore_eos": 1}, "body.ignore_eos=1: must be true or false"),
    ({"seed": -2}, "body.seed=-2: must be a whole number from 0"),
    ({"logprobs": 6}, "body.logprobs=6: must be a whole number from 0 to 5"),
    ({"logprobs": True}, "body.logprobs=true: must be a whole number from 0 to 5"),
    ({"logprobs": 0, "echo": True}, "body.echo=true: cannot be combined with logprobs"),
    ({"presence_penalty": 2.1}, "body.presence_penalty=2.1: must be a number from -2 to 2"),
    ({"frequency_penalty": "1"}, 'body.frequency_penalty="1": must be a number from -2 to 2'),
    ({"logit_bias": []}, "body.logit_bias=[]: must be an object of at most 1000"),
    ({"logit_bias": {str(one): 0 for one in range(1001)}}, "body.logit_bias={...}: must be an object of"),
    ({"logit_bias": {"a": 0}}, 'body.logit_bias={...}: "a" is no token id'),
    ({"logit_bias": {"-1": 0}}, 'body.logit_bias={...}: "-1" is no token id'),
    ({"logit_bias": {"01": 0}}, 'body.logit_bias={...}: "01" is no token id'),
    ({"logit_bias": {"²": 0}}, "is no token id"),
    ({"logit_bias": {"9" * 5000: 0}}, "is no token id"),
    ({"logit_bias": {"1": 101}}, "the bias of token 1 must be a number from -100 to 100, not 101"),
    ({"logit_bias": {"1": None}}, "the bias of token 1 must be a number from -100 to 100, not null"),
    ({"suffix": "end"}, 'body.suffix="end": is not supported'),
    ({"user": 1}, "body.user=1: must be a string"),
    ({"max_token": 1}, "body.max_token: no such field; did you mean max_tokens?"),
    ({"messages": []}, "body.messages: no such field"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    assert message in caught.value.message
    assert len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": 300}, "prompt: 1 prompt tokens and max_tokens=300 do not fit"),
        ({"min_tokens": 17}, "min_tokens=17: must be at most max_tokens, which is 16"),
        ({"n": 5}, "body.n=5: must be a whole number from 1 to 4"),
        ({"best_of": 5}, "body.best_of=5: must be a whole number from 1 to 4"),
        ({"logit_bias": {"420": 1}}, "body.logit_bias: has token id 420"),
        ({"prompt": [420]}, "prompt: has token id 420"),
        ({"prompt": ["a", ""]}, "prompt[1]: is empty"),
    ],
)
def test_what_the_model_cannot_do_is_told_in_openais_names(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.message.startswith(message)
    assert "truncate" not in caught.value.message


def test_routes_of_their_own_read_json_objects_only() -> None:
    with pytest.raises(UnsupportedMediaType):
        schemas.read_completions(b"Hello", "text/plain", 100)
    with pytest.raises(PayloadTooLarge):
        schemas.read_completions(b'{"prompt": "a"}', None, 5)
    with pytest.raises(BadRequest, match="JSON object"):
        schemas.read_completions(b"[]", None, 100)
    with pytest.raises(BadRequest, match=r"body\.inputs: no such field"):
        schemas.read_completions(b'{"inputs": "a"}', None, 100)


def test_an_answer() -> None:
    answer = ask()
    assert answer.pop("created") > 1_700_000_000
    assert answer == {
        "id": "cmpl-req",
        "object": "text_completion",
        "model": "gpt-j",
        "choices": [{"index": 0, "text": " cat sat.", "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5},
    }


def by_number(request: GenerationRequest) -> list[int]:
    return say(" cat" * (request.sampling.sequence_index + 1))


def test_choices_count_through_all_prompts() -> None:
    answer = ask(FakeClient(by_number), prompt=["The", "Hello"], n=2, echo=True)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "The cat"),
        (1, "The cat cat"),
        (2, "Hello cat"),
        (3, "Hello cat cat"),
    ]
    assert answer["usage"]["completion_tokens"] == 10


def test_token_ids_are_a_prompt_and_echo_as_text() -> None:
    client = FakeClient()
    ids = list(tokenizer().encode("Hello there"))
    assert ask(client, prompt=ids, echo=True)["choices"][0]["text"] == "Hello there cat sat."
    assert client.requests[0].prompt_ids == tuple(ids)


def test_candidates_that_were_not_chosen_are_counted() -> None:
    answer = ask(FakeClient(by_number), best_of=3)
    assert len(answer["choices"]) == 1
    assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}


def test_reasons() -> None:
    assert ask(max_tokens=2)["choices"][0]["finish_reason"] == "length"
    assert ask(stop=" sat")["choices"][0]["finish_reason"] == "stop"
    assert openai.finish_reason("deadline") == "deadline"
    assert openai.finish_reason(None) is None


def test_log_probabilities_end_with_the_text() -> None:
    (choice,) = ask(logprobs=1, stop="sat")["choices"]
    assert choice["text"] == " cat "
    assert choice["logprobs"] == {
        # the token that had the stop string begins before it
        "tokens": [" cat", " sat"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{" cat": -0.5, "<|endoftext|>": -0.5}, {" sat": -0.5, "<|endoftext|>": -0.5}],
        "text_offset": [0, 4],
    }
    (choice,) = ask(logprobs=0)["choices"]
    assert choice["logprobs"]["tokens"] == [" cat", " sat", "."]
    assert choice["logprobs"]["top_logprobs"] is None


def test_the_likeliest_tokens_and_the_one_that_was_drawn() -> None:
    texts = [("b", -0.1), ("\ufffd", -1.0), ("\ufffd", -2.0)]
    top = tuple(LikelyToken(index, text, logprob, False) for index, (text, logprob) in enumerate(texts))
    (told,) = openai_logprobs.for_completions([Token(1, "a", None, False, top)], 3)["top_logprobs"]
    assert told == {"b": -0.1, "\ufffd": -1.0, "a": -9999.0}


BYTE_IDS = {tokenizer().token_bytes(token_id): token_id for token_id in range(1, 400)}
BYTE_IDS.pop(b"", None)


def offsets(ids: list[int]) -> list[int]:
    answer = assemble(ids)
    kept = openai_logprobs.of_answer(answer.tokens, answer.text)
    found: list[int] = openai_logprobs.for_completions(kept, 0)["text_offset"]
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x😀y", [0, 1, 1, 1, 1, 2]),
        ("日日é", [0, 0, 0, 1, 1, 1, 2, 2]),
        ("a\ufffdb", [0, 1, 1, 1, 2]),
    ],
)
def test_offsets_with_characters_split_into_bytes(text: str, expected: list[int]) -> None:
    assert offsets([BYTE_IDS[bytes([byte])] for byte in text.encode()]) == expected


@settings(max_examples=300)
@example([BYTE_IDS[b"\xe6"], BYTE_IDS[b"\xe6"], BYTE_IDS[b"a"]])
@given(
    st.lists(st.sampled_from(sorted(BYTE_IDS.values())), max_size=16)
    | st.lists(st.sampled_from([b"\xf0", b"\x9f", b"\x98", b"\x80", b"a", b"\xff"]), max_size=16).map(
        lambda parts: [BYTE_IDS[part] for part in parts]
    )
)
def test_offsets_of_whatever_a_model_makes(ids: list[int]) -> None:
    parts = [tokenizer().token_bytes(token_id) for token_id in ids]
    data = b"".join(parts)
    assume(not re.search(rb"\xed[\xa0-\xbf]", data))  # Python's decoder waits, though it is wrong already
    char_of_byte = character_of_each_byte(data)
    starts, position = [], 0
    for part in parts:
        starts.append(char_of_byte[position])
        position += len(part)
    text = assemble(ids).text
    assert offsets(ids) == [start for start in starts if start < len(text)]


def character_of_each_byte(data: bytes) -> list[int]:
    """By decoding character after character; one more entry than bytes."""
    found: list[int] = []
    while len(found) < len(data):
        rest = data[len(found) :]
        try:
            length = len(rest.decode()[0].encode())
        except UnicodeDecodeError as error:
            length = error.end if error.start == 0 else len(rest[: error.start].decode()[0].encode())
        found += [found[-1] + 1 if found else 0] * length
    return [*found, found[-1] + 1 if found else 0]


def assemble(ids: list[int]) -> Answer:
    one = SequenceAssembler(tokenizer(), (), eos_token_ids=(0,), keep_tokens=True)
    for token_id in ids:
        one.push(TokenEvent("r", token_id, -1.0))
    one.finish(EndEvent("r", "length"))
    return one.answer()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (BadRequest("wrong"), "invalid_request_error"),
        (UnsupportedMediaType("wrong"), "invalid_request_error"),
        (Overloaded("full"), "rate_limit_error"),
        (InternalError("oh"), "server_error"),
    ],
)
def test_errors_are_openais(error: ServingError, kind: str) -> None:
    expected = {
        "message": error.message,
        "type": kind,
        "param": None,
        "code": error.kind,
        "request_id": "req",
    }
    for name in ("openai", "chat"):
        assert schemas.of(name).error(error, "req") == {"error": expected}
    for name in ("tgi", "guide", "plain"):
        assert schemas.of(name).error(error, "req") == error.to_body("req")


def test_what_does_not_fit_the_context_has_openais_code() -> None:
    for document in ({"max_tokens": 300}, {"prompt": "The " * 500}, {"prompt": "x" * 100_000}):
        with pytest.raises(
            ContextOverflow, match="this model's maximum context length is 200 tokens"
        ) as caught:
            parse(**document)
        told = schemas.of("openai").error(caught.value, "req")["error"]
        assert (told["code"], told["type"]) == ("context_length_exceeded", "invalid_request_error")
        assert caught.value.to_body("req")["error_type"] == "validation"


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"tool_choice": "none"},
        {"add_special_tokens": True},
        {"guided_json": None},
        {"use_beam_search": False},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert read(**fields) == read()


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_object"}},
        {"tools": [{"type": "function"}]},
        {"guided_regex": "a"},
        {"structured_outputs": {}},
        {"prompt_logprobs": 1},
        {"use_beam_search": True},
        {"suffix": "a"},
    ],
    ids=str,
)
def test_what_other_servers_have_is_not_supported(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(BadRequest, match=f"body.{name}=.*: is not supported"):
        read(**fields)


@pytest.mark.parametrize(
    ("config", "setting", "name"),
    [
        ({}, None, "gpt-j"),
        ({"_name_or_path": "EleutherAI/gpt-j-6B"}, None, "EleutherAI/gpt-j-6B"),
        ({"_name_or_path": "/home/me/out/checkpoint-5"}, None, "gpt-j"),
        ({"_name_or_path": "./out"}, None, "gpt-j"),
        ({"_name_or_path": "../a/b"}, None, "gpt-j"),
        ({"_name_or_path": None}, None, "gpt-j"),
        ({"_name_or_path": "EleutherAI/gpt-j-6B"}, "mine", "mine"),
    ],
    ids=str,
)
def test_the_models_name(tmp_path: Path, config: Any, setting: str | None, name: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings_of = Settings.from_env({"GPTJ_MODEL_NAME": setting} if setting else {})
    assert find_model_name(settings_of, tmp_path) == name
    call = parse(FakeClient(info=replace(model_info(), model_name=name)))
    data, _ = schemas.render(call, [], "req")
    assert json.loads(data)["model"] == name
