"""Templates and special tokens beside Transformers, which is right."""

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptj_serve import demo
from gptj_serve.serving.templates import files
from gptj_serve.serving.templates.jinja import ChatTemplate, RefusedMessages

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}<{{ part.text }}>{% endfor %}{% endif %}{% endfor %}"
)
SPACES = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if loop.index0 > 5 %}
        {%- break %}
    {%- endif %}
    {{- message.role }}: {{ message.content }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{%- endif %}
"""
TALK = [
    {"role": "system", "content": "Be <kind>, é 日本."},
    {"role": "user", "content": "Hello 'there'\n"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "{{ bos_token }}", "name": "me"},
]
ALL_TOKENS = "|".join(
    f"{{{{ {name}_token }}}}" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask", "tool")
)
TOKENS = {
    "bos_token": "<b>",
    "eos_token": {
        "content": "<e>",
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "__type": "AddedToken",
    },
    "pad_token": "<p>",
    "unk_token": None,
}


def write(model_dir: Path, **contents: Any) -> Path:
    """A directory with the demo's tokenizer and more files, strings as they are; ``__`` is a name's dot."""
    for name in ("tokenizer.json", "config.json"):
        (model_dir / name).write_bytes((demo.MODEL_DIR / name).read_bytes())
    for name, content in contents.items():
        path = model_dir / name.replace("__", ".").replace("SLASH", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return model_dir


def ours(model_dir: Path, messages: Any = TALK) -> str:
    found = files.load(model_dir)
    assert found is not None
    return ChatTemplate(found).render(messages)


def theirs(model_dir: Path, messages: Any = TALK) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    said = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(said, str)
    return said


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        SPACES,
        PARTS,
        "{% if tools is not none %}{{ tools | tojson }}{% endif %}{% if documents is not none %}D{% endif %}"
        + CHATML,
        "{{ tools is defined }}{{ documents is defined }}{{ nothing is defined }}",
        "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration %}\n{% endfor %}x",
        "{% for m in messages %}\n  {% generation %}\n{{ m.content }}\n  {% endgeneration %}\n{% endfor %}",
        "{{ strftime_now('%Y') }}" + CHATML,
        "{{ messages[0] | tojson(ensure_ascii=True) }}{{ messages | tojson(indent=2) }}",
        "{{ messages[3] | tojson }}",
        "{{ messages[3] | tojson(separators=(',', ':'), sort_keys=True) }}",
        ALL_TOKENS,
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{%- macro say(m) -%}[{{ m.content | trim }}]{%- endmacro -%}{{ say(messages[1]) }}{{ loop }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role | upper }}{% endfor %}",
    ],
    ids=lambda source: source[:40],
)
def test_a_template_gives_what_transformers_gives(tmp_path: Path, source: str) -> None:
    model_dir = write(tmp_path, tokenizer_config__json={**TOKENS, "chat_template": source})
    assert ours(model_dir) == theirs(model_dir)


@pytest.mark.parametrize(
    "contents",
    [
        {"tokenizer_config__json": {"chat_template": ALL_TOKENS}},
        {"chat_template__jinja": ALL_TOKENS},
        {"chat_template__jinja": ALL_TOKENS, "special_tokens_map__json": {"pad_token": {"content": "<p>"}}},
        {
            "tokenizer_config__json": {**TOKENS, "chat_template": "another"},
            "chat_template__jinja": ALL_TOKENS,
        },
        {
            "tokenizer_config__json": {**TOKENS, "chat_template": ALL_TOKENS},
            "special_tokens_map__json": {"bos_token": "<map>", "sep_token": "<s>"},
        },
        {
            "tokenizer_config__json": {
                **TOKENS,
                "chat_template": ALL_TOKENS,
                "added_tokens_decoder": {"0": {"content": "<|endoftext|>", "special": True}},
            },
            "special_tokens_map__json": {"bos_token": "<map>"},
        },
        {
            "tokenizer_config__json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": ALL_TOKENS,
                "tool_token": "<t>",
            }
        },
        {"tokenizer_config__json": {"tokenizer_class": "GPT2TokenizerFast", "chat_template": ALL_TOKENS}},
        {"tokenizer_config__json": {"tokenizer_class": "GPT2Tokenizer", "chat_template": ALL_TOKENS}},
        {
            "tokenizer_config__json": {
                "chat_template": ALL_TOKENS,
                "extra_special_tokens": {"tool_token": "<t>"},
            }
        },
        {
            "tokenizer_config__json": {
                "chat_template": [
                    {"name": "tool_use", "template": "x"},
                    {"name": "default", "template": ALL_TOKENS},
                ]
            }
        },
        {"chat_template__jinja": ALL_TOKENS, "chat_templatesSLASHtool_use__jinja": "x"},
    ],
    ids=str,
)
def test_files_say_what_they_say_to_transformers(tmp_path: Path, contents: dict[str, Any]) -> None:
    model_dir = write(tmp_path, **contents)
    assert ours(model_dir) == theirs(model_dir)


def test_parts_are_what_the_template_takes(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    model_dir = write(tmp_path, tokenizer_config__json={"chat_template": PARTS})
    assert ours(model_dir, talk) == theirs(model_dir, talk) == "<a><b>"
    # Transformers would show these the list as Python writes it
    for source in (
        "{{ messages[0].content }}",
        "{{ messages[0]['content'] + '' }}",
        "{{ messages[0].content | trim }}",
    ):
        model_dir = write(tmp_path, tokenizer_config__json={"chat_template": source})
        assert ours(model_dir, talk) == "a\nb"
    model_dir = write(
        tmp_path, tokenizer_config__json={"chat_template": "{{ messages[0].content | tojson }}"}
    )
    assert ours(model_dir, talk) == '"a\\nb"'


def test_the_clock_is_the_machines(tmp_path: Path) -> None:
    model_dir = write(tmp_path, tokenizer_config__json={"chat_template": "{{ strftime_now('%d %b %Y') }}"})
    before = datetime.now()
    assert ours(model_dir) in {moment.strftime("%d %b %Y") for moment in (before, datetime.now())}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses them: roles must alternate"),
        ("{{ messages[5].content.x }}", "refuses them"),
        ("{{ messages + 1 }}", "failed on them (TypeError)"),
        ("{{ messages.append(1) }}", "refuses them"),
        ("{{ ''.__class__.__mro__ }}", "refuses them"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "failed on them (RecursionError)"),
    ],
)
def test_what_a_template_raises_is_told(source: str, message: str) -> None:
    template = ChatTemplate(files.TemplateFiles(source, {}))
    with pytest.raises(RefusedMessages) as caught:
        template.render(TALK)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "contents", [{}, {"tokenizer_config__json": {}}, {"chat_templatesSLASHreadme__md": ""}]
)
def test_models_without_template(tmp_path: Path, contents: dict[str, Any]) -> None:
    model_dir = write(tmp_path, **contents)
    assert files.load(model_dir) is None
    assert not files.names_template(model_dir)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"tokenizer_config__json": []}, "tokenizer_config.json cannot be read"),
        ({"tokenizer_config__json": ""}, "tokenizer_config.json cannot be read"),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json cannot be read"),
        ({"tokenizer_config__json": LFS}, "tokenizer_config.json cannot be read"),
        ({"chat_template__jinja": LFS}, "chat_template.jinja cannot be read"),
        ({"tokenizer_config__json": {"chat_template": 5}}, "tokenizer_config.json: chat_template must be"),
        (
            {"tokenizer_config__json": {"chat_template": [{"name": "rag", "template": "x"}]}},
            "the templates rag",
        ),
        (
            {"chat_template__jinja": "x", "special_tokens_map__json": "["},
            "special_tokens_map.json cannot be read",
        ),
        ({"chat_template__jinjaSLASHx": ""}, "chat_template.jinja cannot be read"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, contents: dict[str, Any], message: str) -> None:
    model_dir = write(tmp_path, **contents)
    assert files.names_template(model_dir)
    with pytest.raises(files.UnusableTemplate, match=message) as caught:
        files.load(model_dir)
    assert str(tmp_path) not in str(caught.value)  # clients see it


def test_other_kinds_of_files(tmp_path: Path) -> None:
    path = write(tmp_path) / "chat_template.jinja"
    for make, reason in (
        (lambda: path.write_bytes(b"a\xff"), "not UTF-8"),
        (lambda: path.symlink_to("nothing"), "No such file"),
        (lambda: os.mkfifo(path), "is a pipe"),
        (lambda: path.write_text(LFS), "is a Git LFS pointer"),
    ):
        make()
        with pytest.raises(files.UnusableTemplate, match=r"chat_template.jinja cannot be read") as caught:
            files.load(tmp_path)
        assert f"{path}: " in caught.value.for_log
        assert reason in caught.value.for_log
        path.unlink()


@pytest.mark.parametrize("source", ["{% if %}", "{{ 1", "{% no_such_tag %}", "{% generation %}"])
def test_what_is_no_jinja_is_unusable(source: str) -> None:
    with pytest.raises(files.UnusableTemplate, match="it is no Jinja"):
        ChatTemplate(files.TemplateFiles(source, {}))
