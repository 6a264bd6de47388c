"""The generation parameters that several schemas have in common: their names, ranges and meanings.

They are those of Transformers' ``generate``.
"""

from collections.abc import Mapping
from typing import Any

from gptj_serve.errors import BadRequest
from gptj_serve.request import IdLists
from gptj_serve.serving.parameters import Parameters
from gptj_serve.serving.schemas.field_checks import (
    MAX_TOKENS,
    MIN_TEMPERATURE,
    TOKEN_ID,
    Check,
    boolean,
    check_text,
    integer,
    number,
    only,
    probability,
    stops,
    temperature,
    token_ids,
)

MAX_NGRAM = 100
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 100
MAX_BAD_WORD_IDS = 32


def to_parameters(fields: Mapping[str, Any]) -> Parameters:
    """The parameters that the checked fields of `COMMON` ask for, without fields that are only checked."""
    given = dict(fields)
    if "eos_token_id" in given:
        given["eos_token_ids"] = given["eos_token_id"]
    if given.get("temperature") == 0:
        given |= {"do_sample": False, "temperature": 1.0}
    known = {name: given[name] for name in given if name in Parameters.__dataclass_fields__}
    return Parameters(**known, given=frozenset(fields))


def join_stops(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """Join ``stop`` and ``stop_sequences``, which are two names for one field."""
    stop_sequences = fields.pop("stop_sequences", ())
    if stop_sequences and fields.get("stop"):
        raise BadRequest(f"{where}.stop_sequences: is another name for {where}.stop; send one of them")
    return {**fields, "stop": stop_sequences or fields.get("stop", ())}


def read_best_of(fields: Mapping[str, Any], where: str, answers: str) -> int | None:
    """How many sequences to generate for each prompt; None if there are only its answers.

    Args:
        fields: The checked fields of a body.
        where: The object that they are in, for errors.
        answers: The schema's name for the number of answers.

    Raises:
        BadRequest: There are fewer sequences than answers.
    """
    num_answers: int = fields.get(answers, 1)
    best_of: int = fields.get("best_of", num_answers)
    if best_of < num_answers:
        raise BadRequest(f"{where}.best_of={best_of}: must be at least {answers}, which is {num_answers}")
    return best_of if best_of > num_answers else None


def _or_minus_1(check: Check, stands_for: Any, says: str) -> Check:
    """The same check, except that -1 has the meaning that other servers give it."""

    def read_value(value: Any) -> Any:
        if type(value) is int and value == -1:
            return stands_for
        try:
            return check.read(value)
        except ValueError as error:
            raise ValueError(f"{error}, or -1, which {says}") from None

    return Check(read_value, {**check.schema, "minimum": -1})


def _bad_words(value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, list) and len(value) <= MAX_BAD_WORDS
    if not is_list or not all(isinstance(one, str) and 1 <= len(one) <= MAX_BAD_WORD_CHARS for one in value):
        raise ValueError(
            f"must be a list of at most {MAX_BAD_WORDS} strings of 1 to {MAX_BAD_WORD_CHARS} characters"
        )
    return tuple(map(check_text, value))


def _bad_words_ids(value: Any) -> IdLists:
    words: list[Any] = value if isinstance(value, list) and len(value) <= MAX_BAD_WORDS else [None]
    for word in words:
        is_word = isinstance(word, list) and 1 <= len(word) <= MAX_BAD_WORD_IDS
        if not is_word or not all(type(one) is int and 0 <= one <= MAX_TOKENS for one in word):
            raise ValueError(
                f"must be a list of at most {MAX_BAD_WORDS} lists of 1 to {MAX_BAD_WORD_IDS} token ids"
            )
    return tuple(map(tuple, words))


def _early_stopping(value: Any) -> Any:
    """When beams end; Transformers has these three values."""
    return value if value == "never" else boolean.read(value)


NEW_TOKENS = integer(1, MAX_TOKENS, "what the context holds")
"""Check for a number of new tokens, before prompt and context are known."""

EVERYWHERE: Mapping[str, Check] = {
    "top_k": _or_minus_1(integer(0, MAX_TOKENS), 0, "keeps all"),
    "top_p": probability,
    "min_p": number(0, 1),
    "typical_p": probability,
    "repetition_penalty": number(MIN_TEMPERATURE, 1e6),  # outside of it, float32 logits overflow
    "no_repeat_ngram_size": integer(0, MAX_NGRAM),
    "bad_words": Check(
        _bad_words,
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_CHARS},
            "maxItems": MAX_BAD_WORDS,
        },
    ),
    "bad_words_ids": Check(
        _bad_words_ids,
        {
            "type": "array",
            "items": {"type": "array", "items": TOKEN_ID, "minItems": 1, "maxItems": MAX_BAD_WORD_IDS},
            "maxItems": MAX_BAD_WORDS,
        },
    ),
    "stop_token_ids": token_ids,
    "seed": _or_minus_1(integer(0, (1 << 64) - 1), None, "draws one"),
}
"""The fields that every JSON schema has under these names, which are also those of `Parameters`."""

COMMON: Mapping[str, Check] = {
    **EVERYWHERE,
    "max_new_tokens": NEW_TOKENS,
    "min_new_tokens": integer(0, MAX_TOKENS),
    "do_sample": boolean,
    "temperature": temperature(1e6),
    "suppress_tokens": token_ids,
    "begin_suppress_tokens": token_ids,
    "stop": stops,
    "stop_sequences": stops,
    "include_stop_str_in_output": boolean,
    "skip_special_tokens": boolean,
    "num_return_sequences": integer(1, MAX_TOKENS),
    "return_full_text": boolean,
    "truncate": integer(1, MAX_TOKENS),
    "details": boolean,
    # Transformers' pipelines accept these, and their clients send them
    "min_length": integer(0, MAX_TOKENS),
    "max_length": NEW_TOKENS,
    "eos_token_id": token_ids,
    "num_beams": only(
        1, why="only 1 is served: the injected kernels keep one cache per row and cannot reorder it for beams"
    ),
    # these have no effect without beams or padding
    "early_stopping": Check(_early_stopping, {"anyOf": [boolean.schema, {"enum": ["never"]}]}),
    "length_penalty": number(-1e9, 1e9),
    "num_beam_groups": only(1),
    "diversity_penalty": number(0, 0),
    "pad_token_id": token_ids,
    "use_cache": boolean,
    "synced_gpus": boolean,
    "remove_invalid_values": boolean,
    # these are accepted with the value that asks for nothing
    "encoder_no_repeat_ngram_size": only(0),
    "clean_up_tokenization_spaces": only(False),
    "output_attentions": only(False),
    "output_hidden_states": only(False),
    "output_scores": only(False),
    "return_dict_in_generate": only(False),
    "return_tensors": only(False),
    "return_text": only(True),
    "prefix": only(""),
}
"""The fields that both JSON schemas have."""
