"""Chat from outside, on both fronts: with a template as fine-tunes have, and with one that is unusable."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gptj_serve import demo
from support.server import WITHOUT_MODEL, Server, nothing_left, serving, until

TEMPLATE = (
    "{% if messages[0].content == 'for ever' %}"
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
)
TALK = [{"role": "user", "content": "In the beginning"}]
ASK: dict[str, Any] = {"messages": TALK, "max_tokens": 8, "temperature": 0}
MESSAGE = "the chat template is not usable, chat is not served: "


def model_with(folder: Path, template: str | None = None, **contents: str) -> Path:
    """The demo model with a chat template, and other files in place of its own; ``__`` is a name's dot."""
    shutil.copytree(demo.MODEL_DIR, folder)
    if template is not None:
        contents["chat_template__jinja"] = template
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


@pytest.fixture(scope="module", params=["mms", "http"])
def chatty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model_dir = model_with(tmp_path_factory.mktemp("chat") / "model", TEMPLATE)
    with serving(**WITHOUT_MODEL, GPTJ_MODEL_DIR=str(model_dir), GPTJ_FRONT=request.param) as server:
        yield server


def ask(server: Server, **fields: Any) -> Any:
    return server.post(json.dumps({**ASK, **fields}))


def test_a_conversation_is_answered_as_its_prompt_is(chatty: Server) -> None:
    answer = ask(chatty)
    assert answer.status == 200, answer.body
    assert answer.json["object"] == "chat.completion"
    prompt = {"prompt": "In the beginning<|endoftext|>", "max_tokens": 8, "temperature": 0}
    same = chatty.post(json.dumps(prompt)).json
    assert answer.json["choices"][0]["message"]["content"] == same["choices"][0]["text"]
    assert answer.json["usage"] == same["usage"]


def test_a_template_that_loops_costs_nobody_else_anything(chatty: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        looping = pool.submit(ask, chatty, messages=[{"role": "user", "content": "for ever"}])
        num_served = 0
        while not looping.done():
            assert ask(chatty, max_tokens=1).status == 200
            assert chatty.get("/ping").status == 200
            num_served += 1
    answer = looping.result()
    assert answer.status == 400
    assert "takes more than it may: 1 s of computing" in answer.json["error"]["message"]
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert num_served > 2  # a front that waits for the template serves one, after it
    assert ask(chatty).status == 200


def test_a_template_that_cannot_be_used_refuses_chat_alone(tmp_path: Path) -> None:
    model_dir = model_with(tmp_path / "model", "{% if %}")
    with serving(**WITHOUT_MODEL, GPTJ_MODEL_DIR=str(model_dir), GPTJ_FRONT="http") as server:
        assert server.processes_of("gptj_serve.serving.templates.process")
        assert server.generate("In the", max_new_tokens=2).status == 200
        for _ in range(2):
            answer = ask(server)
            assert answer.status == 400
            assert "chat template is not usable: it is no Jinja" in answer.json["error"]["message"]
        (warning,) = until(lambda: server.events("no_chat"))
        assert warning["message"].startswith(MESSAGE)
        assert warning["level"] == "warning"
        assert "Traceback" not in server.log
        everything = server.descendants()
        server.signal(15)
        assert server.wait_for_exit() == 0
        assert nothing_left(everything)
