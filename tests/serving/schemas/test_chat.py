"""OpenAI's chat: what is read, what is answered."""

import json
from typing import Any

import pytest
import tokenizers

from gptj_serve.errors import BadRequest
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Ask
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.service import Service
from gptj_serve.serving.text import Tokenizer
from support.serving_fakes import FakeClient, backend, tokenizer

HELLO = [{"role": "user", "content": "Hello"}]


def read(**fields: Any) -> Ask:
    data = json.dumps({"messages": HELLO, **fields}).encode()
    return schemas.read_chat(data, "application/json", 10_000_000)


def refusal(**fields: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value.message


def test_messages_are_kept_for_the_template() -> None:
    talk = [{"role": "system", "content": "Be <kind>."}, {"role": "user", "content": "Hi", "name": "me"}]
    given = read(messages=talk)
    assert (given.schema, given.messages, given.texts) == ("chat", talk, ())
    assert (given.is_list, given.prompts_field, given.stream) == (False, "messages", False)
    assert given.with_prompt("a").texts == ("a",)


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ({"role": "user", "content": PARTS, "name": None}, {"role": "user", "content": PARTS}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "content": "a", "tool_calls": []}, {"role": "assistant", "content": "a"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
            {"role": "user", "content": PARTS[:1]},
        ),
    ],
    ids=str,
)
def test_messages_as_clients_have_them(message: dict[str, Any], kept: dict[str, Any]) -> None:
    assert read(messages=[message]).messages == [kept]


def test_an_answer_of_openais_client_is_a_message() -> None:
    from openai.types.chat import ChatCompletionMessage  # a second: it is loaded where this test is run

    message = ChatCompletionMessage(role="assistant", content="a").model_dump()
    assert read(messages=[message]).messages == [{"role": "assistant", "content": "a"}]


NO_EFFECT = {
    "user": "me",
    "metadata": {"a": "b"},
    "service_tier": "auto",
    "store": False,
    "prompt_cache_key": "a",
    "safety_identifier": "a",
    "tools": [],
    "tool_choice": "none",
    "parallel_tool_calls": False,
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "reasoning_effort": "none",
    "audio": None,
    "documents": [],
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
    "guided_json": None,
    "best_of": 1,
    "echo": False,
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_changes_nothing_is_taken(name: str) -> None:
    assert read(**{name: NO_EFFECT[name]}) == read()


TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"tool_choice": "required"},
        {"tool_choice": TOOL},
        {"functions": [{"name": "f"}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {}}},
        {"audio": {"voice": "a"}},
        {"modalities": ["text", "audio"]},
        {"reasoning_effort": "high"},
        {"web_search_options": {}},
        {"prediction": {"type": "content", "content": "a"}},
        {"guided_json": {}},
        {"structured_outputs": {"json": {}}},
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"a": 1}},
        {"documents": [{"text": "a"}]},
        {"continue_final_message": True},
        {"best_of": 2},
        {"echo": True},
        {"messages": [{"role": "tool", "content": "a", "tool_call_id": "b"}]},
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [TOOL]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
    ],
    ids=str,
)
def test_what_other_servers_have_is_not_supported(fields: dict[str, Any]) -> None:
    message = refusal(**fields)
    assert "is not supported" in message
    (name,) = fields
    assert message.startswith((f"body.{name}=", f"{name}[0]."))


def test_fields() -> None:
    assert read().parameters == Parameters(do_sample=True, top_k=0)
    assert read(max_tokens=5).parameters == read(max_completion_tokens=5).parameters
    assert read(max_tokens=5).parameters.max_new_tokens == 5
    told = read(logprobs=True, top_logprobs=20).parameters
    assert (told.details, told.num_top_logprobs) == (True, 20)
    given = read(temperature=0, stop="a", stream=True, stream_options={"include_usage": True})
    assert given.parameters == Parameters(top_k=0, stop=("a",), include_usage=True)
    assert given.stream


def test_the_end_of_text_can_be_ignored() -> None:
    assert read(ignore_eos=True).parameters.ignore_eos
    assert not read().parameters.ignore_eos


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages: is missing"),
        ({"messages": []}, "messages=[]: must be a list"),
        ({"messages": "Hello"}, 'messages="Hello": must be a list'),
        ({"messages": ["Hello"]}, 'messages[0]="Hello": must be an object'),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1].content: is missing"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: is missing"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content=[...]: each part must be"),
        (
            {"messages": [{"role": "user", "content": []}]},
            "messages[0].content=[]: must be a string",
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content=5: must be a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
            "messages[0].content=[...]: each text part must have a text",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content: is missing"),
        ({"messages": [{"role": "user", "content": "a", "tone": 1}]}, "messages[0].tone: no such field"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "body.max_completion_tokens: is another name"),
        ({"max_completion_tokens": 0}, "body.max_completion_tokens=0: must be at least 1"),
        ({"top_logprobs": 2}, "body.top_logprobs=2: needs logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "body.top_logprobs=21: must be a whole number from 0 to 20"),
        ({"logprobs": 1}, "body.logprobs=1: must be true or false"),
        ({"n": 2, "temperature": 0}, "body.n=2: must be 1 with temperature 0"),
        ({"metadata": "a"}, 'body.metadata="a": must be an object'),
        ({"nothing": True}, "body.nothing: no such field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields).startswith(message)


class Joined:
    """A template that puts the messages behind one another."""

    def render(self, messages: Any) -> str:
        return "".join(message["content"] for message in messages)


def service(template: Any = None) -> Service:
    return Service(FakeClient(), tokenizer(), 6 << 20, 30.0, clock=lambda: 0.0, template=template)


def test_a_conversation_is_told_by_its_shape() -> None:
    data = json.dumps({"messages": [*HELLO, *HELLO]}).encode()
    call = service(Joined()).parse(data, "application/json")
    assert (call.ask.schema, call.prompts[0].text) == ("chat", "HelloHello")
    assert schemas.guess(data) is schemas.COMPLETIONS


@pytest.mark.parametrize("fields", [{}, {"add_special_tokens": False}, {"add_special_tokens": True}], ids=str)
def test_what_the_tokenizer_adds_comes_to_a_conversation_only_if_asked_for(fields: dict[str, Any]) -> None:
    with_first = tokenizers.Tokenizer.from_str(backend().to_str())
    first = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    with_first.post_processor = first
    begins = Service(FakeClient(), Tokenizer(with_first), 6 << 20, 30.0, template=Joined())
    for document, default in (({"messages": HELLO}, False), ({"prompt": "Hello"}, True)):
        data = json.dumps({**document, **fields}).encode()
        (prompt,) = begins.parse(data, None).prompts
        is_added = fields.get("add_special_tokens", default)
        assert prompt.token_ids == (*([0] if is_added else []), *tokenizer().encode("Hello"))


def test_a_model_without_template_cannot_chat() -> None:
    with pytest.raises(BadRequest, match="messages: this model has no chat template; send a prompt instead"):
        service().parse(json.dumps({"messages": HELLO}).encode(), None)


def test_an_answer() -> None:
    call = service().check(read(logprobs=True).with_prompt("Hello"), arrived_s=0.0)
    data, _ = schemas.render(call, service().run(call, "req").answers, "req")
    answer = json.loads(data)
    (choice,) = answer["choices"]
    assert (answer["id"], answer["object"]) == ("chatcmpl-req", "chat.completion")
    assert choice["message"] == {"role": "assistant", "content": " cat sat."}
    assert choice["finish_reason"] == "stop"
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == [" cat", " sat", "."]
    assert choice["logprobs"]["content"][2] == {
        "token": ".",
        "logprob": -0.5,
        "bytes": [46],
        "top_logprobs": [],
    }
    assert answer["usage"]["completion_tokens"] == 4
