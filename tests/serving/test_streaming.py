"""Streams: joined they are the whole answer, whatever held text back."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import FakeClient, say, tokenizer

from gptj_serve.errors import BadRequest, Unavailable
from gptj_serve.request import TokenEvent
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Call
from gptj_serve.serving.generation import Answer
from gptj_serve.serving.schemas.chat import ChatTemplate
from gptj_serve.serving.service import Service

TEMPLATE = ChatTemplate("{{ messages[0].content }}")
DONE = "[DONE]"


def parse(document: dict[str, Any], client: FakeClient | None = None) -> tuple[Service, Call]:
    client = client or FakeClient()
    service = Service(client, tokenizer(), 6 << 20, 30.0, streaming=True, clock=lambda: 0.0)
    data = json.dumps(document).encode()
    if "messages" in document:
        return service, service.check(schemas.read_chat(data, None, len(data), TEMPLATE), arrived_s=0.0)
    return service, service.parse(data, None)


def run(
    document: dict[str, Any], ids: Sequence[int] | None = None, cut_after: int | None = None
) -> tuple[Any, list[Any]]:
    """The whole answer's document, and the stream's events."""
    script = say(" cat sat.") if ids is None else list(ids)
    client = FakeClient(lambda _: script)
    service, call = parse({**document, "stream": True}, client)
    generation = service.start(call, "req")
    renderer = schemas.stream(call, "req")
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
IDS = st.lists(st.integers(0, 419), max_size=12) | st.text(CHARS, max_size=20).map(
    lambda text: list(tokenizer().encode(text))
)
"""Random ids split characters; encoded text has the stop strings in it."""


@settings(max_examples=200, deadline=None)
@given(
    IDS,
    st.lists(st.text(CHARS, min_size=1, max_size=4), max_size=2),
    st.booleans(),
    st.none() | st.integers(0, 8),
    st.integers(1, 12),
)
def test_the_joined_stream_is_the_whole_answer(
    ids: list[int], stops: list[str], full: bool, cut_after: int | None, length: int
) -> None:
    script = [*ids, 0]
    parameters = {"stop": stops, "return_full_text": full, "max_new_tokens": length}
    check_tgi(*run({"inputs": "The", "parameters": parameters}, script, cut_after), full)
    completions = {"prompt": ["The", "Hello"], "stop": stops, "max_tokens": length}
    check_openai(*run({**completions, "echo": full}, script, cut_after))
    check_openai(*run({**completions, "logprobs": 2}, script, cut_after))
    chat = {"messages": [{"role": "user", "content": "Hello"}], "stop": stops, "max_tokens": length}
    check_chat(*run({**chat, "logprobs": full}, script, cut_after))


def check_tgi(whole: Any, stream: list[Any], full: bool) -> None:
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
    assert len(stream) - details["generated_tokens"] in (0, details["finish_reason"] == "deadline")
    assert not any(event["details"] for event in stream[:-1])


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
    assert stream[-1]["details"]["finish_reason"] == "deadline"
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


def test_the_prompt_is_echoed_first() -> None:
    _, stream = run({"prompt": ["The", "Hello"], "n": 2, "echo": True})
    firsts = [openai_choices(stream, index)[0]["text"] for index in range(4)]
    assert firsts == ["The", "The", "Hello", "Hello"]


def test_errors_after_the_first_byte() -> None:
    error = Unavailable("gone")
    _, call = parse({"inputs": "The", "stream": True})
    (event,) = events(schemas.stream(call, "req").error(error, "req"))
    assert event == {"error": "gone", "error_type": "unavailable", "request_id": "req"}
    for document in ({"prompt": "The"}, {"messages": [{"role": "user", "content": "The"}]}):
        _, call = parse({**document, "stream": True})
        (event,) = events(schemas.stream(call, "req").error(error, "req"))
        assert event == schemas.render_error(error, "req", call.ask.schema)


@pytest.mark.parametrize("document", [{"inputs": {"text_inputs": "The"}}])
def test_the_guides_schema_has_no_streams(document: dict[str, Any]) -> None:
    _, call = parse(document)
    with pytest.raises(BadRequest, match="guide schema has no streams"):
        schemas.stream(call, "req")
