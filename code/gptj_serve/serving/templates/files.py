"""The chat template and the special tokens that a model directory names, as Transformers reads them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 64 * 1024 * 1024
GIT_LFS = "version https://git-lfs.github.com/spec/"

_CONFIG = "tokenizer_config.json"
_END_OF_TEXT = "<|endoftext|>"
_DEFAULT_TOKENS: Mapping[str, str] = dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END_OF_TEXT)
"""Of the tokenizer class that GPT-J has where its files name none."""
_CLASSES_WITH_DEFAULTS = (None, "GPT2Tokenizer", "GPT2TokenizerFast")


class UnusableTemplate(Exception):
    """The files name a template that cannot be used; says which file and why, as a client may see it."""


@dataclass(frozen=True, slots=True)
class TemplateFiles:
    """What a model directory says of chat.

    Attributes:
        source: The template, in Jinja.
        special_tokens: Texts by name, such as ``bos_token``; those that a template can name.
    """

    source: str
    special_tokens: Mapping[str, str]


def load(model_dir: Path) -> TemplateFiles | None:
    """Read the files; None if they name no template.

    Raises:
        UnusableTemplate: They name one that cannot be read, or several of which none is the default.
    """
    named = _template_files(model_dir)  # they come before the configuration's
    config = {} if named and not _is_there(model_dir / _CONFIG) else _config(model_dir)
    named = named or _templates_of(config)
    if not named:
        return None
    if "default" not in named:
        names = ", ".join(sorted(named))
        raise UnusableTemplate(f"there are the templates {names}, and none is called default")
    return TemplateFiles(named["default"], _special_tokens(config, model_dir))


def names_template(model_dir: Path) -> bool:
    """Whether the files name a template, be it usable or not."""
    try:
        return load(model_dir) is not None
    except UnusableTemplate:
        return True


def _template_files(model_dir: Path) -> dict[str, str]:
    named = {}
    single = model_dir / "chat_template.jinja"
    if _is_there(single):
        named["default"] = _read(single)
    folder = model_dir / "chat_templates"
    if folder.is_dir():
        named |= {path.name.removesuffix(".jinja"): _read(path) for path in sorted(folder.glob("*.jinja"))}
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
    # older directories, whose configuration does not list the tokens, have the last word there
    if "added_tokens_decoder" not in config and _is_there(path):
        fields |= _read_object(path)
    has_defaults = fields.get("tokenizer_class") in _CLASSES_WITH_DEFAULTS
    tokens: dict[str, Any] = dict(_DEFAULT_TOKENS) if has_defaults else {}
    tokens |= {name: value for name, value in fields.items() if name.endswith("_token")}
    if isinstance(extra := fields.get("extra_special_tokens"), dict):
        tokens |= extra
    texts = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _config(model_dir: Path) -> dict[str, Any]:
    path = model_dir / _CONFIG
    return _read_object(path) if _is_there(path) else {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_read(path).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise UnusableTemplate(f"{path.name}: not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UnusableTemplate(f"{path.name}: must be a JSON object")
    return document


def _read(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would never end
            raise UnusableTemplate(f"{path.name}: is no file, or a link to nothing")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnusableTemplate(f"{path.name}: is larger than {MAX_FILE_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnusableTemplate(f"{path.name}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnusableTemplate(f"{path.name}: is not UTF-8: byte {error.start} is wrong") from None
    if text.startswith(GIT_LFS):
        raise UnusableTemplate(f"{path.name}: is a Git LFS pointer, not the file (git lfs pull fetches it)")
    return text


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
