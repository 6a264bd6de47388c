"""OpenAI's chat: ``{"messages": [{"role": ..., "content": ...}]}``, made a prompt by the model's template."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptj_serve.errors import BadRequest, StartupError
from gptj_serve.serving.call import Ask, Call
from gptj_serve.serving.generation import Answer, Delta, Token
from gptj_serve.serving.parameters import (
    Check,
    boolean,
    checked_elsewhere,
    integer,
    object_schema,
    read_fields,
    shown,
    string,
)
from gptj_serve.serving.schemas import openai, openai_logprobs

NAME = "chat"
MAX_TOP_LOGPROBS = 20

_MESSAGE: Mapping[str, Check] = {"role": string, "content": string, "name": string}
_MESSAGES = {"type": "array", "items": object_schema(_MESSAGE, ["role", "content"]), "minItems": 1}

_CHECKS: Mapping[str, Check] = {
    **openai.SHARED,
    "messages": checked_elsewhere(_MESSAGES),
    "max_completion_tokens": openai.max_tokens,
    "logprobs": boolean,
    "top_logprobs": integer(0, MAX_TOP_LOGPROBS),
}


def request_schema() -> dict[str, Any]:
    """The JSON Schema of the bodies that `read` reads."""
    return object_schema(_CHECKS, required=["messages"])


class ChatTemplate:
    """Makes one prompt of messages, as the model was trained to read them.

    Args:
        source: The template, in Jinja as Transformers has it.
        bos_token: The text of the token that begins a prompt, "" if there is none.
        eos_token: The same of the token that ends an answer.

    Raises:
        StartupError: The template is not Jinja.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = "") -> None:
        # templates come with models: they may loop over messages, not reach into Python
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise StartupError(f"the chat template is not usable: {error}") from None
        self._special = {"bos_token": bos_token, "eos_token": eos_token}

    @staticmethod
    def load(model_dir: Path) -> "ChatTemplate | None":
        """The template in ``chat_template.jinja`` or ``tokenizer_config.json``; None if there is none.

        Raises:
            StartupError: Files cannot be read; says which and why.
        """
        config = _load_config(model_dir / "tokenizer_config.json")
        path = model_dir / "chat_template.jinja"
        try:
            source = path.read_text(encoding="utf-8") if path.exists() else _template_of(config)
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"{path}: cannot be read: {error}") from None
        if source is None:
            return None
        try:
            return ChatTemplate(source, _token_text(config, "bos_token"), _token_text(config, "eos_token"))
        except StartupError as error:
            raise StartupError(f"{model_dir}: {error}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next message.

        Raises:
            BadRequest: The template refuses the messages.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, **self._special)
        except jinja2.TemplateError as error:
            raise BadRequest(f"messages: the model's chat template refuses them: {error}") from None
        except Exception as error:  # whatever its expressions raise
            kind = type(error).__name__
            raise BadRequest(f"messages: the model's chat template failed on them ({kind})") from None


def read(document: Any, template: ChatTemplate | None) -> Ask:
    """Read a body.

    Raises:
        BadRequest: A field is missing, unknown or wrong, or the model cannot chat.
    """
    if template is None:
        raise BadRequest("messages: this model has no chat template; use /v1/completions with a prompt")
    fields = read_fields(document, _CHECKS, "body")
    messages = _read_messages(fields.get("messages"))
    if "max_completion_tokens" in fields:
        if "max_tokens" in fields:
            raise BadRequest("body.max_completion_tokens: is another name for max_tokens; send one of them")
        fields["max_tokens"] = fields["max_completion_tokens"]
    if fields.get("top_logprobs") and not fields.get("logprobs"):
        raise BadRequest(f"body.top_logprobs={fields['top_logprobs']}: needs logprobs=true")
    return Ask(
        schema=NAME,
        texts=(template.render(messages),),
        is_list=False,
        prompts_field="messages",
        parameters_field="body",
        parameters=openai.to_parameters(
            fields,
            details=fields.get("logprobs", False),
            num_top_logprobs=fields.get("top_logprobs", 0),
        ),
        stream=fields.get("stream", False),
    )


def render(
    call: Call, answers: Sequence[Answer], request_id: str, created: int, num_generated: int | None = None
) -> dict[str, Any]:
    """The whole answer; the arguments are those of `openai.render`."""
    choices = []
    for index, answer in enumerate(answers):
        logprobs = None
        if call.parameters.details:
            logprobs = openai_logprobs.for_chat(openai_logprobs.of_answer(answer.tokens, answer.text))
        choices.append(
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": logprobs,
                "finish_reason": openai.finish_reason(answer.finish_reason),
            }
        )
    return {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": created,
        "model": openai.MODEL_NAME,
        "choices": choices,
        "usage": openai.usage(call, answers, num_generated),
    }


class Stream(openai.ChunkStream):
    """The stream of `/v1/chat/completions`."""

    def __init__(self, call: Call, request_id: str) -> None:
        super().__init__(call, f"chatcmpl-{request_id}", "chat.completion.chunk")

    def _choices(self, delta: Delta, is_first: bool, tokens: list[Token]) -> Iterator[dict[str, Any]]:
        if is_first:
            yield _choice(delta.index, {"role": "assistant", "content": ""})
        has_logprobs = self._call.parameters.details and tokens
        logprobs = openai_logprobs.for_chat(tokens) if has_logprobs else None
        if delta.text:
            yield _choice(delta.index, {"content": delta.text}, logprobs)
            logprobs = None
        if delta.finish_reason:
            # clients expect the reason in a chunk without content
            yield _choice(delta.index, {}, logprobs, openai.finish_reason(delta.finish_reason))

    def _nothing(self, index: int) -> dict[str, Any]:
        return _choice(index, {"content": ""})


def _choice(
    index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _read_messages(value: Any) -> list[dict[str, str]]:
    if value is None:
        raise BadRequest("messages: is missing; must be a list of {role, content}")
    if not isinstance(value, list) or not value:
        raise BadRequest(f"messages={shown(value)}: must be a list of {{role, content}}, at least one")
    return [_read_message(message, f"messages[{index}]") for index, message in enumerate(value)]


def _read_message(value: Any, where: str) -> dict[str, str]:
    message = read_fields(value, _MESSAGE, where)
    for name in ("role", "content"):
        if name not in message:
            raise BadRequest(f"{where}.{name}: is missing; must be a string")
    return message


def _load_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartupError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise StartupError(f"{path}: must be a JSON object")
    return config


def _template_of(config: Mapping[str, Any]) -> str | None:
    """A config's template; of several that have names, the default one."""
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_text(config: Mapping[str, Any], name: str) -> str:
    token = config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
