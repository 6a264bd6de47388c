"""Looks at a directory's tokenizer files: whether ``tokenizer.json`` alone says all that they say.

If it does, it is read as it is. Everything else is Transformers' to make sense of
(`gptj_serve.serving.tokenizing.convert`): no rule of how files are put together is repeated here. So a
file, a field or a value that is not known to change nothing makes a directory one of those.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import read_json, read_text
from gptj_serve.models.remedies import tokenizer_command
from gptj_serve.serving.tokenizing import PreparedTokenizer

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
VOCAB = "vocab.json"
MERGES = "merges.txt"

_GPT2 = "GPT2Tokenizer"
_AS_IT_IS = ("PreTrainedTokenizer", "TokenizersBackend")
"""Classes that take ``tokenizer.json`` as it is; GPT-2's takes vocabulary and merges out of it."""
_END_OF_TEXT = "<|endoftext|>"

_MAIN_TOKENS = ("bos_token", "eos_token", "unk_token")
_NAMED_TOKENS = (*_MAIN_TOKENS, "pad_token", "sep_token", "cls_token", "mask_token")
_TOKEN_LISTS = ("additional_special_tokens", "extra_special_tokens")
_WITHOUT_EFFECT = frozenset(
    {
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",  # Transformers leaves the text of byte-level BPE as it is
        "from_slow",
        "is_local",
        "local_files_only",
        "model_input_names",
        "model_max_length",
        "name_or_path",
        "padding_side",
        "processor_class",
        "return_token_type_ids",
        "special_tokens_map_file",
        "trim_offsets",
        "truncation_side",
    }
)
_WITHOUT_EFFECT_AT: Mapping[str, Sequence[Any]] = {
    "add_bos_token": (False,),
    "add_eos_token": (False,),
    "errors": ("replace",),
    "split_special_tokens": (False,),
}
_PLAIN_MODEL = {
    "type": ("BPE",),
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}


def read_plain(directory: Path) -> PreparedTokenizer | None:
    """What ``tokenizer.json`` says, if the other files add nothing to it; None if they may.

    Raises:
        StartupError: Files are missing or cannot be read; says which and why.
    """
    config, special_map, added_ids = (
        _read_if_there(directory / name) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
    )
    path = directory / TOKENIZER
    if not path.exists():
        _check_vocab_and_merges(directory)
        return None
    definition = read_text(path)
    saved = _parse(path, definition)
    name = _class_name(directory, config)
    known = _AddedTokens.of(saved)
    special = {**_named_by_default(name, config), **special_map, **_special_tokens(config)}
    is_plain = (
        known is not None
        and name in (_GPT2, *_AS_IT_IS)
        and _is_byte_level(saved, config.get("add_prefix_space", False))
        and _says_nothing_else(config)
        and _agree(special_map, config)
        and known.has_all_special(special)
        and known.has_decoder(config.get("added_tokens_decoder"))
        and known.has_ids(added_ids)
    )
    if known is None or not is_plain:
        return None
    return PreparedTokenizer(definition, known.id_of(special.get("eos_token")))


def _check_vocab_and_merges(directory: Path) -> None:
    for name in (VOCAB, MERGES):
        if not (directory / name).exists():
            raise StartupError(
                f"{directory}: no {TOKENIZER}, and no {name} to do without it; {tokenizer_command(directory)}"
            )
    try:
        tokenizers.models.BPE.from_file(str(directory / VOCAB), str(directory / MERGES))
    except Exception as error:  # the library raises plain `Exception`
        raise StartupError(f"{directory / VOCAB}, {MERGES}: not a BPE vocabulary: {error}") from None


def _parse(path: Path, definition: str) -> dict[str, Any]:
    try:
        tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises plain `Exception`
        raise StartupError(f"{path}: not a tokenizer: {error}") from None
    saved: dict[str, Any] = json.loads(definition)
    return saved


class _AddedTokens:
    """The added tokens of a ``tokenizer.json``, which has each id at its place."""

    def __init__(self, by_content: Mapping[str, Mapping[str, Any]]) -> None:
        self._by_content = by_content

    @staticmethod
    def of(saved: Mapping[str, Any]) -> "_AddedTokens | None":
        """None if ids are taken or leave a gap, so that they are not what the file says."""
        vocab = saved["model"].get("vocab")
        if not isinstance(vocab, dict):
            return None
        num_ids = len(vocab)
        by_content = {}
        for token in saved.get("added_tokens") or ():
            content, token_id = token["content"], token["id"]
            if content in by_content:
                return None
            if content not in vocab:
                if token_id != num_ids:
                    return None
                num_ids += 1
            elif vocab[content] != token_id:
                return None
            by_content[content] = token
        return _AddedTokens(by_content)

    def id_of(self, token: Any) -> int | None:
        """The id of a token, as its text or as an object."""
        content = token.get("content") if isinstance(token, dict) else token
        return self._by_content[content]["id"] if content is not None else None

    def has_all_special(self, special: Mapping[str, Any]) -> bool:
        """Whether all tokens that have a name, or are listed, are special here too."""
        tokens: list[Any] = []
        for name, value in special.items():
            is_list = name in _TOKEN_LISTS and isinstance(value, (list, dict))
            tokens += value if is_list else [value] if value is not None else []
        return special.keys() <= {*_NAMED_TOKENS, *_TOKEN_LISTS} and all(map(self._is_special, tokens))

    def has_decoder(self, decoder: Any) -> bool:
        """Whether a list of added tokens by their ids is that of ``tokenizer.json``, if there is one."""
        ours = {str(token["id"]): _flags(token) for token in self._by_content.values()}
        if not isinstance(decoder, dict) or not all(isinstance(token, dict) for token in decoder.values()):
            return decoder is None
        return {key: _flags(token) for key, token in decoder.items()} == ours

    def has_ids(self, id_by_content: Mapping[str, Any]) -> bool:
        """Whether all these tokens have these ids."""
        return all(
            content in self._by_content and self._by_content[content]["id"] == token_id
            for content, token_id in id_by_content.items()
        )

    def _is_special(self, token: Any) -> bool:
        content = token.get("content") if isinstance(token, dict) else token
        ours = self._by_content.get(content) if isinstance(content, str) else None
        return ours is not None and bool(ours.get("special"))


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    unset = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": None, "special": False}
    return {**unset, **{name: value for name, value in token.items() if name not in ("id", "__type")}}


def _class_name(directory: Path, config: Mapping[str, Any]) -> str:
    """Which of Transformers' classes reads the directory, as far as that is known here; else ""."""
    model = _read_if_there(directory / "config.json")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None and model.get("model_type") == "gptj":
        name = _GPT2
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _named_by_default(name: str, config: Mapping[str, Any]) -> dict[str, str]:
    # the class names these where the files do not
    return {key: _END_OF_TEXT for key in _MAIN_TOKENS if name == _GPT2 and key not in config}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in (*_NAMED_TOKENS, *_TOKEN_LISTS)}


def _agree(special: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Which of the two files counts depends on the version that wrote them: both must say the same."""
    if not config:
        return True
    return all(_content(config.get(name)) == _content(value) for name, value in special.items())


def _content(value: Any) -> Any:
    if isinstance(value, list):
        return [_content(one) for one in value]
    return value.get("content") if isinstance(value, dict) else value


def _says_nothing_else(config: Mapping[str, Any]) -> bool:
    handled = {"tokenizer_class", "add_prefix_space", "added_tokens_decoder", *_NAMED_TOKENS, *_TOKEN_LISTS}
    others = {name: value for name, value in config.items() if name not in handled | _WITHOUT_EFFECT}
    return all(value in _WITHOUT_EFFECT_AT.get(name, ()) for name, value in others.items())


def _is_byte_level(saved: Mapping[str, Any], add_prefix_space: Any) -> bool:
    """Whether a ``tokenizer.json`` is GPT-2's in kind, so that every class makes the same of it."""
    model = saved["model"]
    pre_tokenizer = saved.get("pre_tokenizer") or {}
    post_processor = saved.get("post_processor") or {}
    return (
        all(model.get(name, values[0]) in values for name, values in _PLAIN_MODEL.items())
        and saved.get("normalizer") is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and pre_tokenizer.get("add_prefix_space") is add_prefix_space
        and pre_tokenizer.get("use_regex", True) is True
        and post_processor.get("type") in (None, "ByteLevel", "TemplateProcessing")
        and not post_processor.get("special_tokens")
        and (saved.get("decoder") or {}).get("type") == "ByteLevel"
    )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
