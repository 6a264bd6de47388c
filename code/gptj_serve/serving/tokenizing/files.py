"""Checks whether ``tokenizer.json`` alone says everything that a directory's tokenizer files say.

If it does, it is read as it is. Everything else is left to Transformers
(`gptj_serve.serving.tokenizing.convert`): no rule of how files are combined is repeated here. So a file, a
field or a value that is not known to change nothing leaves the directory to Transformers.
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
"""Classes that use ``tokenizer.json`` as it is; GPT-2's class takes vocabulary and merges from it."""
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
    "dropout": (None,),
    "unk_token": (None,),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False,),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}

AddedTokens = Mapping[str, Mapping[str, Any]]
"""The added tokens of ``tokenizer.json``, by their text."""


def read_plain(directory: Path) -> PreparedTokenizer | None:
    """What ``tokenizer.json`` says if the other files add nothing to it; None if they may.

    Raises:
        StartupError: Files are missing or cannot be read; the message says which and why.
    """
    config, special_map, added_ids = (
        _read_if_there(directory / name) for name in (TOKENIZER_CONFIG, SPECIAL_TOKENS, ADDED_TOKENS)
    )
    path = directory / TOKENIZER
    if not path.exists():
        _check_vocab_and_merges(directory)
        return None
    definition = read_text(path)
    backend = _parse(path, definition)
    saved = json.loads(definition)
    name = _class_name(directory, config)
    known = _added_tokens(saved, backend)
    special = {**_named_by_default(name, config), **special_map, **_special_tokens(config)}
    is_plain = (
        known is not None
        and isinstance(backend.model, tokenizers.models.BPE)
        and name in (_GPT2, *_AS_IT_IS)
        and _is_byte_level(saved, config.get("add_prefix_space", False))
        and _says_nothing_else(config)
        and _agree(special_map, config)
        and _are_all_special(special, known)
        and _is_their_decoder(config.get("added_tokens_decoder"), known)
        and all(content in known and known[content]["id"] == added_ids[content] for content in added_ids)
    )
    if known is None or not is_plain:
        return None
    eos_token = _content(special.get("eos_token"))
    return PreparedTokenizer(definition, None if eos_token is None else known[eos_token]["id"])


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


def _parse(path: Path, definition: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # the library raises plain `Exception`
        raise StartupError(f"{path}: not a tokenizer: {error}") from None


def _added_tokens(saved: Mapping[str, Any], backend: tokenizers.Tokenizer) -> AddedTokens | None:
    """The added tokens of a ``tokenizer.json``; None if the library gives one another id than the file."""
    added = saved.get("added_tokens") or ()
    content_by_id = {
        token_id: token.content for token_id, token in backend.get_added_tokens_decoder().items()
    }
    if len(added) != len(content_by_id):
        return None
    are_the_same = all(content_by_id.get(token["id"]) == token["content"] for token in added)
    return {token["content"]: token for token in added} if are_the_same else None


def _are_all_special(named: Mapping[str, Any], known: AddedTokens) -> bool:
    """Whether all tokens that have a name or are listed are also special in ``tokenizer.json``."""
    tokens: list[Any] = []
    for name, value in named.items():
        is_list = name in _TOKEN_LISTS and isinstance(value, (list, dict))
        tokens += value if is_list else [value] if value is not None else []
    contents = map(_content, tokens)
    return named.keys() <= {*_NAMED_TOKENS, *_TOKEN_LISTS} and all(
        isinstance(content, str) and bool(known.get(content, {}).get("special")) for content in contents
    )


def _is_their_decoder(decoder: Any, known: AddedTokens) -> bool:
    """Whether a list of added tokens by their ids, if there is one, is that of ``tokenizer.json``."""
    ours = {str(token["id"]): _flags(token) for token in known.values()}
    if not isinstance(decoder, dict) or not all(isinstance(token, dict) for token in decoder.values()):
        return decoder is None
    return {key: _flags(token) for key, token in decoder.items()} == ours


def _flags(token: Mapping[str, Any]) -> dict[str, Any]:
    unset = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": None, "special": False}
    return {**unset, **{name: value for name, value in token.items() if name not in ("id", "__type")}}


def _class_name(directory: Path, config: Mapping[str, Any]) -> str:
    """The class of Transformers that reads the directory, as far as that is known here; else ""."""
    model = _read_if_there(directory / "config.json")
    name = config.get("tokenizer_class") or model.get("tokenizer_class")
    if name is None and model.get("model_type") == "gptj":
        name = _GPT2
    return name.removesuffix("Fast") if isinstance(name, str) else ""


def _named_by_default(name: str, config: Mapping[str, Any]) -> dict[str, str]:
    # the class names these if the files do not
    return {key: _END_OF_TEXT for key in _MAIN_TOKENS if name == _GPT2 and key not in config}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in (*_NAMED_TOKENS, *_TOKEN_LISTS)}


def _agree(special: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether both files say the same, as it depends on the version that wrote them which one counts."""
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
    """Whether a ``tokenizer.json`` is of GPT-2's kind, so that all classes make the same of it."""
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
