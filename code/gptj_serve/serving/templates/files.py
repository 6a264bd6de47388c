"""Reads the chat template and the special tokens that a model directory names, as Transformers does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import read_json, read_text

T = TypeVar("T")

_CONFIG = "tokenizer_config.json"
_END_OF_TEXT = "<|endoftext|>"
_DEFAULT_TOKENS: Mapping[str, str] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT)
"""The tokens of GPT-J's tokenizer class, for files that name none."""
_CLASSES_WITH_DEFAULTS = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


class UnusableTemplate(Exception):
    """The files name a template that cannot be used.

    Args:
        reason: The file and the reason, as a client may see them.
        for_log: The same with paths, for the operator; None if there is no more to say.
    """

    def __init__(self, reason: str, for_log: str | None = None) -> None:
        super().__init__(reason)
        self.for_log = for_log or reason


@dataclass(frozen=True, slots=True)
class TemplateFiles:
    """What a model directory says about chat.

    Attributes:
        source: The template, in Jinja.
        special_tokens: Texts by name, such as ``bos_token``; those that a template can name.
    """

    source: str
    special_tokens: Mapping[str, str]


def load(model_dir: Path) -> TemplateFiles | None:
    """Read the files; None if they name no template.

    Raises:
        UnusableTemplate: They name a template that cannot be read, or several without a default.
    """
    named = _template_files(model_dir)  # these tokens win over the configuration's
    path = model_dir / _CONFIG
    config = _read(read_json, path) if _is_there(path) else {}
    named = named or _templates_of(config)
    if not named:
        return None
    if "default" not in named:
        names = ", ".join(sorted(named))
        raise UnusableTemplate(f"there are the templates {names}, and none is called default")
    return TemplateFiles(named["default"], _special_tokens(config, model_dir))


def names_template(model_dir: Path) -> bool:
    """Whether the files name a template, usable or not."""
    try:
        return load(model_dir) is not None
    except UnusableTemplate:
        return True


def _template_files(model_dir: Path) -> dict[str, str]:
    named = {}
    single = model_dir / "chat_template.jinja"
    if _is_there(single):
        named["default"] = _read(read_text, single)
    folder = model_dir / "chat_templates"
    if folder.is_dir():
        named |= {
            path.name.removesuffix(".jinja"): _read(read_text, path)
            for path in sorted(folder.glob("*.jinja"))
        }
    return named


def _templates_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The templates in ``tokenizer_config.json``: one, or several that have names."""
    given = config.get("chat_template")
    if given is None:
        return {}
    named = {"default": given} if isinstance(given, str) else given
    if isinstance(given, list) and all(isinstance(one, dict) for one in given):
        named = {one.get("name"): one.get("template") for one in given}
    if not isinstance(named, dict) or not all(isinstance(one, str) for pair in named.items() for one in pair):
        raise UnusableTemplate(f"{_CONFIG}: chat_template must be a string, or a list of {{name, template}}")
    return named


def _special_tokens(config: Mapping[str, Any], model_dir: Path) -> dict[str, str]:
    fields = dict(config)
    path = model_dir / "special_tokens_map.json"
    # in older directories, whose configuration does not list the tokens, this file wins
    if "added_tokens_decoder" not in config and _is_there(path):
        fields |= _read(read_json, path)
    has_defaults = fields.get("tokenizer_class") in _CLASSES_WITH_DEFAULTS
    tokens: dict[str, Any] = dict(_DEFAULT_TOKENS) if has_defaults else {}
    tokens |= {name: value for name, value in fields.items() if name.endswith("_token")}
    if isinstance(extra := fields.get("extra_special_tokens"), dict):
        tokens |= extra
    texts = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _read(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except StartupError as error:
        raise UnusableTemplate(f"{path.name} cannot be read; the log says why", str(error)) from None


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
