"""Streams: joined they are the whole answer, whatever held text back."""

import codecs
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_serve.errors import BadRequest
from gptj_serve.request import TokenEvent
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Call
from gptj_serve.serving.generation import Answer, Delta, Token
from gptj_serve.serving.service import Service
from support.serving_fakes import FakeClient, say, tokenizer

DONE = "[DONE]"


def parse(document: dict[str, Any], client: FakeClient | None = None) -> tuple[Service, Call]:
    client = client or FakeClient()
    service = Service(client, tokenizer(), 6 << 20, 30.0, streaming=True, clock=lambda: 0.0)
    data = json.dumps(document).encode()
    if "messages" in document:
        ask = schemas.read_chat(data, None, len(data)).with_prompt(document["messages"][0]["content"])
        return service, service.check(ask, arrived_s=0.0)
    return service, service.parse(data, None)


def run(
    document: dict[str, Any], ids: Sequence[int] | None = None, cut_after: int | None = None
) -> tuple[Any, list[Any]]:
    """The whole answer's document, and the stream's events."""
    script = say(" cat sat.") if ids is None else list(ids)
    client = FakeClient(lambda _: script)
    service, call = parse({**document, "stream": True}, client)
    generation = service.start(call, "req")
    renderer = schemas.of(call.ask.schema).stream(call, "req")
    data, num_tokens = b"", 0
    for one in client.generate(generation.requests):
        if num_tokens == cut_after:
            data += b"".join(map(renderer.delta, generation.cut("deadline")))
            break
        num_tokens += isinstance(one, TokenEvent)
        delta = generation.push(one)
        if delta.stop_found:
            client.abort(one.request_id)
        data += renderer.delta(delta)
    answers: tuple[Answer, ...] = generation.answers()
    data += renderer.end(answers)
    rendered, _ = schemas.render(call, answers, "req")
    return json.loads(rendered), events(data)


def events(data: bytes) -> list[Any]:
    parts = data.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [DONE if part == f"data: {DONE}" else json.loads(part[6:]) for part in parts]


def openai_choices(stream: list[Any], index: int) -> list[Any]:
    assert stream[-1] == DONE
    choices = [choice for chunk in stream[:-1] for choice in chunk["choices"] if choice["index"] == index]
    assert [choice["finish_reason"] is None for choice in choices] == [True] * (len(choices) - 1) + [False]
    return choices


CHARS = "The cat.日é😀\n"
BYTE_IDS = {tokenizer().token_bytes(token_id): token_id for token_id in range(1, 400)}


def byte_by_byte(text: str) -> list[int]:
    """A token for every byte, as a model may say it that has no token for a character."""
    return [BYTE_IDS[bytes([byte])] for byte in text.encode()]


TEXTS = st.text(CHARS, max_size=12)
IDS = (
    st.lists(st.integers(0, 419), max_size=12)
    | TEXTS.map(lambda text: list(tokenizer().encode(text)))
    | TEXTS.map(byte_by_byte)
)
"""Random ids break characters, bytes split whole ones."""


@st.composite
def scripts_and_stops(draw: st.DrawFn) -> tuple[list[int], list[str]]:
    """What a model says, and stop strings: any ones, or such as are in it."""
    ids = draw(IDS)
    stops = draw(st.lists(st.text(CHARS, min_size=1, max_size=4), max_size=2))
    text = tokenizer().decode(ids)
    if text and draw(st.booleans()):
        start = draw(st.integers(0, len(text) - 1))
        stops.append(text[start : start + draw(st.integers(1, 4))])
    return [*ids, 0], stops


@settings(max_examples=200)
@given(
    scripts_and_stops(),
    st.booleans(),
    st.none() | st.integers(0, 8),
    st.integers(1, 24),
)
def test_the_joined_stream_is_the_whole_answer(
    said: tuple[list[int], list[str]], full: bool, cut_after: int | None, length: int
) -> None:
    script, stops = said
    expected = text_at_once(script, stops, length if cut_after is None else min(length, cut_after))
    parameters = {"stop": stops, "return_full_text": full, "max_new_tokens": length}
    whole, stream = run({"inputs": "The", "parameters": parameters}, script, cut_after)
    assert whole[0]["generated_text"] == ("The" if full else "") + expected
    check_tgi(whole, stream, full, cut_after is not None)
    detailed = {**parameters, "details": True, "top_n_tokens": 2}
    check_tgi(*run({"inputs": "The", "parameters": detailed}, script, cut_after), full, cut_after is not None)
    completions = {"prompt": ["The", "Hello"], "stop": stops, "max_tokens": length}
    check_openai(*run({**completions, "echo": full}, script, cut_after))
    check_openai(*run({**completions, "logprobs": 2}, script, cut_after))
    chat = {"messages": [{"role": "user", "content": "Hello"}], "stop": stops, "max_tokens": length}
    check_chat(*run({**chat, "logprobs": full}, script, cut_after))


def text_at_once(script: list[int], stops: list[str], length: int) -> str:
    """The answer as it is when nothing is done piece by piece."""
    ids = (script * 24)[:length]
    ids = ids[: ids.index(0)] if 0 in ids else ids
    data = b"".join(map(tokenizer().token_bytes, ids))
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(
        data
    )  # without the begun character at its end
    ends = {stop: text.index(stop) + len(stop) for stop in stops if stop in text}
    if not ends:
        return text
    first_end = min(ends.values())
    return text[: first_end - max(len(stop) for stop, end in ends.items() if end == first_end)]


def check_tgi(whole: Any, stream: list[Any], full: bool, was_cut: bool) -> None:
    text = whole[0]["generated_text"]
    start = "The" if full else ""
    assert start + "".join(event["token"]["text"] for event in stream) == text
    # what clients that skip special tokens show
    assert (
        start + "".join(event["token"]["text"] for event in stream if not event["token"]["special"]) == text
    )
    assert [event["generated_text"] for event in stream] == [None] * (len(stream) - 1) + [text]
    assert [event["index"] for event in stream] == list(range(1, len(stream) + 1))
    details = stream[-1]["details"]
    # an end that no token announced has an event of its own
    assert len(stream) - details["generated_tokens"] in (0, was_cut)
    assert details["finish_reason"] in ("length", "eos_token", "stop_sequence")
    assert not any(event["details"] for event in stream[:-1])
    # without a token there is nothing to tell of one
    assert [event["token"]["logprob"] for event in stream] == [-0.5] * details["generated_tokens"] + [
        None
    ] * (len(stream) - details["generated_tokens"])
    if "details" in whole[0]:
        told = whole[0]["details"]
        assert [event["token"]["id"] for event in stream][: len(told["tokens"])] == [
            token["id"] for token in told["tokens"]
        ]
        assert [event["top_tokens"] for event in stream if "top_tokens" in event] == told.get(
            "top_tokens", []
        )


def check_openai(whole: Any, stream: list[Any]) -> None:
    for choice in whole["choices"]:
        choices = openai_choices(stream, choice["index"])
        assert "".join(one["text"] for one in choices) == choice["text"]
        assert choices[-1]["finish_reason"] == choice["finish_reason"]
        assert all(one["text"] for one in choices[:-1])
        if choice["logprobs"] is not None:
            told = [one["logprobs"] for one in choices if one["logprobs"]]
            for name, values in choice["logprobs"].items():
                assert [value for one in told for value in one[name]] == values
            assert all(start < len(choice["text"]) for start in choice["logprobs"]["text_offset"])
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in stream[:-1]}) == 1


def check_chat(whole: Any, stream: list[Any]) -> None:
    (choice,) = whole["choices"]
    first, *deltas, last = openai_choices(stream, 0)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert last["delta"] == {}
    assert last["finish_reason"] == choice["finish_reason"]
    assert "".join(one["delta"]["content"] for one in deltas) == choice["message"]["content"]
    if choice["logprobs"] is not None:
        told = [entry for one in [*deltas, last] for entry in (one["logprobs"] or {"content": []})["content"]]
        assert told == choice["logprobs"]["content"]


def test_tgis_events() -> None:
    _, stream = run({"inputs": "The", "parameters": {"details": True}})
    first, *_, last = stream
    cat = tokenizer().encode(" cat")[0]
    assert first == {
        "index": 1,
        "token": {"id": cat, "text": " cat", "logprob": -0.5, "special": False},
        "generated_text": None,
        "details": None,
    }
    assert last == {
        "index": 4,
        "token": {"id": 0, "text": "", "logprob": -0.5, "special": True},
        "generated_text": " cat sat.",
        "details": {"finish_reason": "eos_token", "generated_tokens": 4, "input_length": 1, "seed": None},
    }


def test_tgis_likeliest_tokens() -> None:
    whole, stream = run({"inputs": "The", "parameters": {"top_n_tokens": 2, "details": True}})
    end = {"id": 0, "text": "<|endoftext|>", "logprob": -0.5, "special": True}
    other = {"id": 1, "text": tokenizer().token_text(1), "logprob": -1.5, "special": False}
    assert [event["top_tokens"] for event in stream] == [[end, other]] * 4
    assert whole[0]["details"]["top_tokens"] == [[end, other]] * 4
    whole, stream = run({"inputs": "The", "parameters": {"details": True}})
    assert "top_tokens" not in stream[0]
    assert "top_tokens" not in whole[0]["details"]


def test_a_tgi_stream_has_log_probabilities_without_details() -> None:
    _, stream = run({"inputs": "The"})
    assert [event["token"]["logprob"] for event in stream] == [-0.5] * 4


def test_characters_that_tokens_split_and_stop_strings_in_them() -> None:
    """Both schemas: each character comes whole, and nothing of a stop string."""
    script = byte_by_byte("aé日😀b日c")
    parameters = {"stop": "😀b日", "max_new_tokens": 20}
    whole, stream = run({"inputs": "The", "parameters": parameters}, script)
    assert whole[0]["generated_text"] == "aé日"
    assert [event["token"]["text"] for event in stream if event["token"]["text"]] == ["a", "é", "日"]
    whole, stream = run({"prompt": "The", "stop": "😀b日", "max_tokens": 20, "logprobs": 0}, script)
    assert whole["choices"][0]["text"] == "aé日"
    choices = openai_choices(stream, 0)
    assert [choice["text"] for choice in choices] == ["a", "é", "日", ""]
    offsets = [
        start for choice in choices if choice["logprobs"] for start in choice["logprobs"]["text_offset"]
    ]
    assert offsets == [0, 1, 1, 2, 2, 2]


def test_what_was_held_back_for_a_stop_string_comes_with_tgis_last_event() -> None:
    _, stream = run({"inputs": "The", "parameters": {"stop": "sat. The", "max_new_tokens": 3}})
    assert [event["token"]["text"] for event in stream] == [" cat", " ", "sat."]
    assert stream[-1]["details"]["finish_reason"] == "length"
    _, stream = run({"inputs": "The", "parameters": {"stop": "sat. The"}})
    assert [(event["token"]["text"], event["token"]["special"]) for event in stream] == [
        (" cat", False),
        (" ", False),
        ("", False),
        ("sat.", False),
    ]


def test_a_tgi_stream_that_is_cut_ends_without_a_token() -> None:
    _, stream = run({"inputs": "The"}, cut_after=2)
    assert stream[-1]["token"] == {"id": 0, "text": "", "logprob": None, "special": True}
    assert stream[-1]["details"]["finish_reason"] == "length"
    _, stream = run({"inputs": "The", "parameters": {"stop": "sat. The"}}, cut_after=2)
    assert stream[-1]["token"] == {"id": 0, "text": "sat", "logprob": None, "special": False}


def test_openais_chunks() -> None:
    _, stream = run({"prompt": "The", "stream_options": {"include_usage": True}, "max_tokens": 2})
    assert stream[-1] == DONE
    head = {key: stream[0][key] for key in ("id", "object", "created", "model")}
    assert (head["id"], head["object"]) == ("cmpl-req", "text_completion")
    texts = [(" cat", None), (" sat", None), ("", "length")]
    assert stream[:-2] == [
        {
            **head,
            "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}],
            "usage": None,
        }
        for text, reason in texts
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    assert stream[-2] == {**head, "choices": [], "usage": usage}
    assert "usage" not in run({"prompt": "The"})[1][0]


@pytest.mark.parametrize("chat", [False, True])
def test_counts_with_every_token(chat: bool) -> None:
    """Tokens whose text is not final yet have a chunk, too: whoever measures sees when each came."""
    asked = {"messages": [{"role": "user", "content": "The"}]} if chat else {"prompt": "The"}
    options = {"include_usage": True, "continuous_usage_stats": True}
    document = {**asked, "stream_options": options, "max_tokens": 4, "stop": "sat. The"}
    _, call = parse({**document, "stream": True})
    _, stream = run(document)
    chunks = [event for event in stream[:-2] if not (chat and event["choices"][0]["delta"].get("role"))]
    counts = [event["usage"]["completion_tokens"] for event in chunks]
    assert counts == sorted(counts)
    assert set(counts) == set(range(1, stream[-2]["usage"]["completion_tokens"] + 1))
    assert {event["usage"]["prompt_tokens"] for event in chunks} == {call.num_prompt_tokens}
    _, plain = run({**document, "stream_options": {"include_usage": True}})
    assert len(plain) < len(stream)


def test_the_prompt_is_echoed_first() -> None:
    _, stream = run({"prompt": ["The", "Hello"], "n": 2, "echo": True})
    firsts = [openai_choices(stream, index)[0]["text"] for index in range(4)]
    assert firsts == ["The", "The", "Hello", "Hello"]


def dumped(document: Any) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


NO_SURROGATES = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.lists(
        st.tuples(NO_SURROGATES, st.none() | st.floats(allow_nan=False, allow_infinity=False), st.booleans())
    )
)
def test_tgis_events_are_what_json_dumps_writes(tokens: list[tuple[str, float | None, bool]]) -> None:
    _, call = parse({"inputs": "The", "parameters": {"max_new_tokens": 150}, "stream": True})
    renderer = schemas.TGI.stream(call, "req")
    for index, (text, logprob, special) in enumerate(tokens, 1):
        told = {"id": 7, "text": text, "logprob": logprob, "special": special and not text}
        expected = dumped({"index": index, "token": told, "generated_text": None, "details": None})
        assert renderer.delta(Delta(0, text, Token(7, "x", logprob, special))) == expected


@pytest.mark.parametrize(
    "document",
    [
        {"prompt": ["The", "Hello"]},
        {"prompt": ["The", "Hello"], "stream_options": {"include_usage": True}},
        {"messages": [{"role": "user", "content": "The"}], "n": 2, "temperature": 1},
    ],
)
@given(texts=st.lists(NO_SURROGATES))
def test_openais_later_chunks_differ_from_the_first_in_their_text_alone(
    document: dict[str, Any], texts: list[str]
) -> None:
    _, call = parse({**document, "stream": True})
    renderer = schemas.of(call.ask.schema).stream(call, "req")
    token = Token(7, "x", None, False)
    firsts = [events(renderer.delta(Delta(index, "first", token)))[-1] for index in range(2)]
    for text in texts:
        for index, chunk in enumerate(firsts):
            (choice,) = chunk["choices"]
            assert choice["index"] == index
            choice.get("delta", choice)["content" if "delta" in choice else "text"] = text
            assert renderer.delta(Delta(index, text, token)) == (dumped(chunk) if text else b"")


@pytest.mark.parametrize("document", [{"inputs": {"text_inputs": "The"}}])
def test_the_guides_schema_has_no_streams(document: dict[str, Any]) -> None:
    _, call = parse(document)
    with pytest.raises(BadRequest, match="guide schema has no streams"):
        schemas.of(call.ask.schema).stream(call, "req")
