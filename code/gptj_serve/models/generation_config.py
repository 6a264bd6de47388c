"""Reads a model's ``generation_config.json``, and decides what of it is used. No torch is imported here.

What changes the scores of tokens whatever the request is (`_READERS`) is used for every request that does
not say otherwise. How to sample and how long an answer may be is only up to the request. The rest is not
supported, and mentioned once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import read_json

FILE = "generation_config.json"

GPT_J_EOS = 50256
"""The id of <|endoftext|> in the published tokenizer."""

MAX_NGRAM = 100
"""No filter compares longer sequences; see `gptj_serve.engine.sampling.score_filters`."""

_REQUESTS = {
    "do_sample": (False,),
    "temperature": (1,),
    "top_k": (50, 0),  # what older files say of it is Transformers' own default
    "top_p": (1,),
    "min_p": (0,),
    "typical_p": (1,),
    "max_length": (20,),
    "max_new_tokens": (),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "num_return_sequences": (1,),
}
"""Fields that only requests set, and the values with which they change nothing."""

_NO_EFFECT = frozenset(
    {
        # of beams, of other kinds of models, of how a result is handed over, of how the computation is done
        "_from_model_config",
        "bos_token_id",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "decoder_start_token_id",
        "disable_compile",
        "early_stopping",
        "eos_token_id",
        "length_penalty",
        "low_memory",
        "max_cache_len",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "pad_token_id",
        "prefill_chunk_size",
        "return_dict_in_generate",
        "return_legacy_cache",
        "transformers_version",
        "use_cache",
    }
)
_SPECULATION = (
    "assistant_",
    "is_assistant",
    "max_matching_ngram_size",
    "num_assistant_",
    "prompt_lookup_",
    "speculation_",
    "target_lookbehind",
    "use_mtp",
)
"""How the names of fields begin that make Transformers faster, not different."""

_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "diversity_penalty": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "num_beam_groups": (1,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
    "token_healing": (False,),
}
"""Fields that are not supported, and the values with which they ask for nothing."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a model directory says about how to generate.

    Attributes:
        eos_token_ids: Token ids that end a sequence; may be empty.
        scores: Fields of `gptj_serve.request.ScoreParams` for requests that do not set them.
        notes: What is not supported here, a sentence each for a warning.
    """

    eos_token_ids: tuple[int, ...]
    scores: Mapping[str, Any]
    notes: tuple[str, ...]


def read_defaults(directory: Path, config: Mapping[str, Any], vocab_size: int) -> GenerationDefaults:
    """Read the file, if it is there.

    Args:
        directory: The model's directory.
        config: Its config.json, which says what ends a sequence if the file does not.
        vocab_size: Token ids are below this.

    Raises:
        StartupError: The file is no JSON object, or what ends a sequence is no token id.
    """
    path = directory / FILE
    said = read_json(path) if path.is_file() else {}
    notes: list[str] = []
    scores = _scores(said, path, vocab_size, notes)
    for reason, names in (
        ("requests alone say how to sample and how much", _asked(said)),
        ("is not supported and ignored", _not_supported(said)),
    ):
        if names:
            notes.append(f"{path}: {', '.join(_quoted(said, name) for name in names)}: {reason}")
    eos = said.get("eos_token_id")
    source, value = (path, eos) if eos is not None else (directory / "config.json", _eos(config, vocab_size))
    return GenerationDefaults(_known_eos(source, value, vocab_size, notes), scores, tuple(notes))


def _eos(config: Mapping[str, Any], vocab_size: int) -> Any:
    return config.get("eos_token_id", GPT_J_EOS if vocab_size > GPT_J_EOS else None)


def _known_eos(path: Path, value: Any, vocab_size: int, notes: list[str]) -> tuple[int, ...]:
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int for token_id in ids):
        raise StartupError(f"{path}: eos_token_id={value!r}: must be token ids from 0 to {vocab_size - 1}")
    known = tuple(token_id for token_id in ids if 0 <= token_id < vocab_size)
    if len(known) < len(ids):
        notes.append(
            f"{path}: eos_token_id={value!r}: the model knows ids from 0 to {vocab_size - 1};"
            " what is not among them never ends a text"
        )
    return known


def _scores(said: Mapping[str, Any], path: Path, vocab_size: int, notes: list[str]) -> dict[str, Any]:
    scores = {}
    for name, read in _READERS.items():
        if said.get(name) is None:
            continue
        try:
            scores[name] = read(said[name], vocab_size)
        except ValueError as error:
            notes.append(f"{path}: {_quoted(said, name)}: {error}; it is ignored")
    return scores


def _penalty(value: Any, _: int) -> float:
    if type(value) not in (int, float) or not 1e-6 <= value <= 1e6:
        raise ValueError("must be a number from 1e-06 to 1e+06")
    return float(value)


def _ngram_size(value: Any, _: int) -> int:
    if type(value) is not int or not 0 <= value <= MAX_NGRAM:
        raise ValueError(f"must be a whole number from 0 to {MAX_NGRAM}")
    return value


def _ids(value: Any, vocab_size: int) -> tuple[int, ...]:
    given = value if isinstance(value, list) else [value]
    if not all(type(token_id) is int and 0 <= token_id < vocab_size for token_id in given):
        raise ValueError(f"must be token ids from 0 to {vocab_size - 1}")
    return tuple(given)


def _words(value: Any, vocab_size: int) -> tuple[tuple[int, ...], ...]:
    if not isinstance(value, list) or not all(isinstance(word, list) and word for word in value):
        raise ValueError("must be a list of lists of token ids")
    return tuple(_ids(word, vocab_size) for word in value)


_READERS: Mapping[str, Callable[[Any, int], Any]] = {
    "repetition_penalty": _penalty,
    "no_repeat_ngram_size": _ngram_size,
    "bad_words_ids": _words,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
}
"""What is used for every request that does not say otherwise."""


def _quoted(said: Mapping[str, Any], name: str) -> str:
    return f"{name}={said[name]!r}"[:80]


def _asked(said: Mapping[str, Any]) -> list[str]:
    return [name for name in said if name in _REQUESTS and said[name] not in (None, *_REQUESTS[name])]


def _not_supported(said: Mapping[str, Any]) -> list[str]:
    """What else asks for something, unknown names included."""
    known = {*_REQUESTS, *_NO_EFFECT, *_READERS}
    return [
        name
        for name in said
        if name not in known
        and not name.startswith(_SPECULATION)
        and said[name] not in (None, *_NEUTRAL.get(name, ()))
    ]
