"""Model directories with a tokenizer's files as Transformers 4 and 5 have written them, made small."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.serving_fakes import END_OF_TEXT, backend

NUM_IDS = backend().get_vocab_size()
"""Ids from here on are free: the vocabulary's, and that of one added token."""
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
NAMED = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}


def added(content: str, token_id: int, **flags: Any) -> dict[str, Any]:
    """An added token as ``tokenizer.json`` has it; special unless it is said."""
    return {"id": token_id, "content": content, **FLAGS, **flags}


def bos(content: str, token_id: int) -> dict[str, Any]:
    """A post-processor that begins each prompt with a token."""
    one = {"Sequence": {"id": "A", "type_id": 0}}
    token = {"SpecialToken": {"id": content, "type_id": 0}}
    known = {content: {"id": content, "ids": [token_id], "tokens": [content]}}
    return {
        "type": "TemplateProcessing",
        "single": [token, one],
        "pair": [token, one],
        "special_tokens": known,
    }


@dataclass(frozen=True)
class Layout:
    """What is in a directory beside config.json.

    Attributes:
        json: Changes to the ``tokenizer.json`` of the small tokenizer; None for no such file.
        slow: ``vocab.json`` and ``merges.txt`` are there.
        config: ``tokenizer_config.json``.
        special: ``special_tokens_map.json``.
        added: ``added_tokens.json``.
        more: Added tokens of ``tokenizer.json`` beside the two that it has.
        model: Of ``config.json``.
    """

    json: Mapping[str, Any] | None = field(default_factory=dict)
    slow: bool = False
    config: Mapping[str, Any] | None = None
    special: Mapping[str, Any] | None = None
    added: Mapping[str, int] | None = None
    more: tuple[Mapping[str, Any], ...] = ()
    model: Mapping[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> Path:
        """Make the files; the directory."""
        files: dict[str, Any] = {
            "config.json": {"model_type": "gptj", **self.model},
            "tokenizer_config.json": self.config,
            "special_tokens_map.json": self.special,
            "added_tokens.json": self.added,
        }
        if self.json is not None:
            saved = json.loads(backend().to_str())
            files["tokenizer.json"] = {
                **saved,
                **self.json,
                "added_tokens": [*saved["added_tokens"], *self.more],
                "model": {**saved["model"], **self.json.get("model", {})},
            }
        directory.mkdir(exist_ok=True)
        for path in directory.iterdir():
            path.unlink()
        for name, content in files.items():
            if content is not None:
                (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        if self.slow:
            backend().model.save(str(directory))
        return directory
