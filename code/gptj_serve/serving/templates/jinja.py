"""Renders a chat template as Transformers' ``apply_chat_template`` does."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gptj_serve.serving.templates.files import TemplateFiles, UnusableTemplate

Message = Mapping[str, Any]
"""A message: its role, its content (a string, or a list of text parts), perhaps its name."""

MAX_REASON_CHARS = 1000
_PROBE = "probe of parts"


class RefusedMessages(Exception):
    """The template raised an error on the messages, which is the message."""


class ChatTemplate:
    """Makes a prompt from messages, in the form that the model was trained with.

    Args:
        files: The template and the tokens that it may name.

    Raises:
        UnusableTemplate: The template is not Jinja.
    """

    def __init__(self, files: TemplateFiles) -> None:
        try:
            self._template = _environment().from_string(files.source)
        except jinja2.TemplateError as error:
            raise UnusableTemplate(f"it is no Jinja: {error}") from None
        except (ArithmeticError, RecursionError, TypeError, ValueError) as error:
            # its constant expressions, which are computed now, may raise anything
            raise UnusableTemplate(f"it cannot be compiled: {error}") from None
        self._special_tokens = files.special_tokens
        self._takes_parts = self._looks_into_parts()

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for the next message.

        Args:
            messages: The conversation. A template that looks into text parts gets them as they are; other
                templates get one text, joined by newlines.

        Raises:
            RefusedMessages: The template raised an error on them.
            MemoryError: It needs more memory than there is.
        """
        given = messages if self._takes_parts else [_with_one_text(message) for message in messages]
        try:
            return self._render(given)
        except MemoryError:
            raise
        except jinja2.TemplateError as error:
            raise RefusedMessages(f"refuses them: {error}"[:MAX_REASON_CHARS]) from None
        except Exception as error:  # its expressions may raise anything
            raise RefusedMessages(f"failed on them ({type(error).__name__})") from None

    def _render(self, messages: Sequence[Message]) -> str:
        return self._template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **self._special_tokens,
        )

    def _looks_into_parts(self) -> bool:
        """Whether the template treats a list of parts as text, instead of printing it."""
        part = {"type": "text", "text": _PROBE}
        try:
            said = self._render([{"role": "user", "content": [part]}])
        except MemoryError:
            raise
        except Exception:
            return False
        return _PROBE in said and str(part) not in said and json.dumps(part) not in said


class _Generation(Extension):
    """``{% generation %}``, which marks what a model is trained on, and does not change the text."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_pass_on")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _pass_on(self, caller: Callable[[], str]) -> str:
        return caller()


def _environment() -> ImmutableSandboxedEnvironment:
    # templates come with models, so they may loop over messages, but not reach into Python
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _with_one_text(message: Message) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}
