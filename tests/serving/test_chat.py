"""OpenAI's chat: templates, what is read, what is answered."""

import json
from pathlib import Path
from typing import Any

import pytest
from serving_fakes import END_OF_TEXT, FakeClient, tokenizer

from gptj_serve.errors import BadRequest, StartupError
from gptj_serve.serving import schemas
from gptj_serve.serving.call import Ask
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.schemas.chat import ChatTemplate
from gptj_serve.serving.service import Service

SOURCE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role not in ["user", "assistant", "system"] %}
        {{- raise_exception("no role " ~ message.role) }}
    {%- endif %}
    {{- message.role }}: {{ message.content }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{%- endif %}
"""
TEMPLATE = ChatTemplate(SOURCE, "", END_OF_TEXT)
HELLO = [{"role": "user", "content": "Hello"}]


def read(template: ChatTemplate | None = TEMPLATE, **fields: Any) -> Ask:
    data = json.dumps({"messages": HELLO, **fields}).encode()
    return schemas.read_chat(data, "application/json", 10_000_000, template)


def refusal(**fields: Any) -> str:
    with pytest.raises(BadRequest) as caught:
        read(**fields)
    return caught.value.message


def test_messages_become_a_prompt() -> None:
    given = read(messages=[{"role": "system", "content": "Be <kind>."}, *HELLO])
    assert given.schema == "chat"
    assert given.texts == (f"system: Be <kind>.{END_OF_TEXT}\nuser: Hello{END_OF_TEXT}\nassistant:",)
    assert (given.is_list, given.prompts_field, given.stream) == (False, "messages", False)


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
        ({"messages": []}, "messages=[...]: must be a list"),
        ({"messages": "Hello"}, 'messages="Hello": must be a list'),
        ({"messages": ["Hello"]}, 'messages[0]="Hello": must be an object'),
        ({"messages": [*HELLO, {"role": "user"}]}, "messages[1].content: is missing"),
        ({"messages": [{"content": "a"}]}, "messages[0].role: is missing"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "messages[0].content=[...]: must be a string"),
        ({"messages": [{"role": "user", "content": "a", "tone": 1}]}, "messages[0].tone: no such field"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages: the model's chat template refuses"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "body.max_completion_tokens: is another name"),
        ({"max_completion_tokens": 0}, "body.max_completion_tokens=0: must be at least 1"),
        ({"top_logprobs": 2}, "body.top_logprobs=2: needs logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "body.top_logprobs=21: must be a whole number from 0 to 20"),
        ({"logprobs": 1}, "body.logprobs=1: must be true or false"),
        ({"n": 2, "temperature": 0}, "body.n=2: must be 1 with temperature 0"),
        ({"echo": True}, "body.echo: no such field"),
        ({"best_of": 2}, "body.best_of: no such field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    assert refusal(**fields).startswith(message)


def test_a_model_without_template_cannot_chat() -> None:
    message = refusal(template=None)
    assert message == "messages: this model has no chat template; use /v1/completions with a prompt"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses them: roles must alternate"),
        ("{{ messages[5].content.x }}", "refuses them"),
        ("{{ messages + 1 }}", "failed on them (TypeError)"),
        ("{{ messages.append(1) }}", "refuses them"),
        ("{{ ''.__class__.__mro__ }}", "refuses them"),
    ],
)
def test_templates_that_raise_are_a_400(source: str, message: str) -> None:
    assert message in refusal(template=ChatTemplate(source))


def test_templates_have_what_those_of_models_use() -> None:
    source = "{% for one in messages %}{{ one | tojson }}{% break %}{% endfor %}"
    assert ChatTemplate(source).render([{"role": "user", "content": "<é>"}]) == (
        '{"role": "user", "content": "<é>"}'
    )


def write(model_dir: Path, config: Any, jinja: str | None = None) -> Path:
    if config is not None:
        (model_dir / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if jinja is not None:
        (model_dir / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return model_dir


TOKENS = {"bos_token": "<b>", "eos_token": {"content": "<e>", "special": True}}
SHORT = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"


@pytest.mark.parametrize(
    ("config", "jinja", "prompt"),
    [
        (TOKENS | {"chat_template": SHORT}, None, "<b>Hello<e>"),
        (TOKENS | {"chat_template": "another"}, SHORT, "<b>Hello<e>"),
        (None, SHORT, "Hello"),
        (
            {
                "chat_template": [
                    {"name": "tool_use", "template": "x"},
                    {"name": "default", "template": SHORT},
                ]
            },
            None,
            "Hello",
        ),
    ],
)
def test_where_templates_are(tmp_path: Path, config: Any, jinja: str | None, prompt: str) -> None:
    template = ChatTemplate.load(write(tmp_path, config, jinja))
    assert template is not None
    assert template.render(HELLO) == prompt


@pytest.mark.parametrize(
    "config", [None, {}, {"chat_template": None}, {"chat_template": [{"name": "rag", "template": "x"}]}]
)
def test_models_without_template(tmp_path: Path, config: Any) -> None:
    assert ChatTemplate.load(write(tmp_path, config)) is None


@pytest.mark.parametrize(
    ("config", "message"), [([], "must be a JSON object"), ({"chat_template": "{% if %}"}, "not usable")]
)
def test_what_cannot_be_read_stops_the_start(tmp_path: Path, config: Any, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        ChatTemplate.load(write(tmp_path, config))


def test_an_answer() -> None:
    service = Service(FakeClient(), tokenizer(), 6 << 20, 30.0, clock=lambda: 0.0)
    call = service.check(read(logprobs=True), arrived_s=0.0)
    data, _ = schemas.render(call, service.run(call, "req").answers, "req")
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
