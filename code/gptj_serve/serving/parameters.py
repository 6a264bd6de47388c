"""Generation parameters. Names and meanings are those of Transformers' ``generate``.

Everything is checked here, before anything reaches the engine; an error names the field, its value
and what is allowed.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from gptj_serve.errors import BadRequest, ContextOverflow
from gptj_serve.request import (
    ALWAYS_USED,
    USED_WHEN_DRAWING,
    IdLists,
    ModelInfo,
    SamplingParams,
    ScoreParams,
)

DEFAULT_MAX_NEW_TOKENS = 100
MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_TOKENS = 1 << 20
MAX_TOKEN_IDS = 128
MAX_NGRAM = 100
MAX_BAD_WORDS = 128
MAX_BAD_WORD_CHARS = 100
MAX_BAD_WORD_IDS = 32
NEAR = 0.82
"""How alike (0 to 1) a wrong name and a suggestion are: a slip of the pen, not ``top_n`` and ``top_p``."""
MAX_LISTED = 8
"""An object with more fields than this is not listed in an error."""
NO_BEAMS = "only 1 is served: the injected kernels keep one cache per row and cannot reorder it for beams"


@dataclass(frozen=True, slots=True)
class Check:
    """What a field of a body may be.

    Attributes:
        read: Returns the value to use, or raises `ValueError` saying what is allowed.
        schema: What it lets pass, as a JSON Schema. It may let more pass: what depends on other fields or on
            the model.
    """

    read: Callable[[Any], Any]
    schema: Mapping[str, Any]

    def __call__(self, value: Any) -> Any:
        """See ``read``."""
        return self.read(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters(ScoreParams):
    """What a client asked for, checked one by one; `sampling` adds what depends on the prompt.

    Attributes:
        max_new_tokens: Tokens to generate at most; None takes what fits, `DEFAULT_MAX_NEW_TOKENS` at most.
        max_length: The same with the prompt counted in; comes before ``max_new_tokens``.
        min_new_tokens: No end of text before this many new tokens.
        min_length: The same with the prompt counted in.
        eos_token_ids: Token ids that end the text in place of the model's own; None keeps those.
        ignore_eos: The end of text, where it is chosen, ends nothing.
        stop: Strings that end the answer.
        stop_token_ids: Token ids that end it as the end of text does, even where that is ignored.
        bad_words: Words that are not said.
        include_stop_str_in_output: The answer ends after the stop string, or the token that ended it.
        skip_special_tokens: The answer has no special tokens.
        seed: None draws one.
        num_return_sequences: Answers for each prompt.
        return_full_text: Put the prompt before the answer.
        best_of: Sequences generated for each prompt, of which the ``num_return_sequences`` most likely (by
            mean log-probability a token) are the answers; None generates no more than those.
        truncate: Keep this many tokens of the prompt's end.
        details: Report tokens, log-probabilities, counts and the seed.
        logprobs: Compute log-probabilities, for whatever reports them without ``details``.
        num_top_logprobs: Report this many of the most likely tokens beside each token; needs
            log-probabilities.
        include_usage: End a stream with the counts of tokens.
        continuous_usage: Tell them with every token, too, those without text included; with `include_usage`.
        given: The fields that the client set; the model's own defaults are for the others.
        names: What the client's schema calls our fields, where it has other names; for errors.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    eos_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    top_k: int = 50
    stop: tuple[str, ...] = field(default=(), repr=False)
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = field(default=(), repr=False)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    seed: int | None = None
    num_return_sequences: int = 1
    best_of: int | None = None
    return_full_text: bool = False
    truncate: int | None = None
    details: bool = False
    logprobs: bool = False
    num_top_logprobs: int = 0
    include_usage: bool = False
    continuous_usage: bool = False
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)
    names: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_candidates(self) -> int:
        """Sequences to generate for each prompt."""
        return self.best_of or self.num_return_sequences

    @property
    def needs_logprobs(self) -> bool:
        """Whether something is to be told of log-probabilities, or chosen by them."""
        return self.logprobs or self.details or self.best_of is not None

    def eos_of(self, info: ModelInfo) -> tuple[int, ...]:
        """Token ids that are the end of the text: the request's, else the model's own."""
        return info.eos_token_ids if self.eos_token_ids is None else self.eos_token_ids

    def with_defaults(self, info: ModelInfo) -> "Parameters":
        """These, and the model's own where the client said nothing."""
        defaults = {name: value for name, value in info.defaults.items() if name not in self.given}
        return replace(self, **defaults) if defaults else self

    def check_against(self, info: ModelInfo, where: str) -> None:
        """Check what depends on the engine or on several fields.

        Raises:
            BadRequest: More answers a prompt than the engine's batch holds, or than greedy search has; a
                bias for a token, or a bad word of tokens, that the model does not have.
        """
        name = f"{where}.{self._called('num_return_sequences')}={self.num_return_sequences}"
        if self.num_return_sequences > info.max_batch_size:
            raise BadRequest(f"{name}: must be a whole number from 1 to {info.max_batch_size}")
        if self.num_return_sequences > 1 and not self.do_sample:
            raise BadRequest(
                f"{name}: must be 1 without do_sample and with temperature 0 (all answers would be the same)"
            )
        if self.best_of is not None and self.best_of > info.max_batch_size:
            raise BadRequest(
                f"{where}.best_of={self.best_of}: must be a whole number from 1 to {info.max_batch_size}"
            )
        named = {
            "logit_bias": [token_id for token_id, _ in self.logit_bias],
            "bad_words_ids": [token_id for word in self.bad_words_ids for token_id in word],
        }
        for field_name, token_ids in named.items():
            unknown = max(token_ids, default=0)
            if unknown >= info.vocab_size and field_name in self.given:
                raise BadRequest(
                    f"{where}.{field_name}: has token id {unknown}, and the model knows ids below"
                    f" {info.vocab_size}"
                )

    def sampling(
        self, num_prompt_tokens: int, info: ModelInfo, seed: int, where: str, bad_words: IdLists = ()
    ) -> SamplingParams:
        """How one prompt's tokens are chosen.

        Args:
            num_prompt_tokens: The prompt's length, >= 1.
            info: The engine's limits.
            seed: Used when sampling.
            where: The prompt's name in errors.
            bad_words: What the tokenizer makes of the words that are not to be said.

        Raises:
            BadRequest: Prompt and new tokens do not fit, or the limits contradict each other.
        """
        max_new_tokens, min_new_tokens = self._lengths(num_prompt_tokens, info.max_context, where)
        used = (*ALWAYS_USED, *(USED_WHEN_DRAWING if self.do_sample else ()))
        asked = SamplingParams(
            max_new_tokens,
            min_new_tokens,
            **{name: getattr(self, name) for name in used},
            bad_words=bad_words,
            seed=seed if self.do_sample else 0,
        )
        return asked if asked.top_k < info.vocab_size else replace(asked, top_k=0)

    def _lengths(self, num_prompt_tokens: int, max_context: int, where: str) -> tuple[int, int]:
        min_new_tokens = max(self.min_new_tokens, self.min_length - num_prompt_tokens)
        if self.max_length is not None:
            max_new_tokens = self.max_length - num_prompt_tokens
        elif self.max_new_tokens is not None:
            max_new_tokens = self.max_new_tokens
        else:
            wanted = max(DEFAULT_MAX_NEW_TOKENS, min_new_tokens)
            max_new_tokens = max(1, min(wanted, max_context - num_prompt_tokens))
        if max_new_tokens < 1:
            raise BadRequest(
                f"max_length={self.max_length}: counts the prompt too, and {where} has {num_prompt_tokens}"
                f" tokens; must be at least {num_prompt_tokens + 1}"
            )
        if num_prompt_tokens + max_new_tokens > max_context:
            raise too_long(where, str(num_prompt_tokens), max_new_tokens, max_context, self.names)
        if min_new_tokens > max_new_tokens:
            low, high = self._called("min_new_tokens"), self._called("max_new_tokens")
            raise BadRequest(f"{low}={min_new_tokens}: must be at most {high}, which is {max_new_tokens}")
        return max_new_tokens, min_new_tokens

    def _called(self, name: str) -> str:
        return self.names.get(name, name)


def too_long(
    where: str,
    num_prompt_tokens: str,
    max_new_tokens: int,
    max_context: int,
    names: Mapping[str, str] | None = None,
) -> ContextOverflow:
    """The error for a prompt that does not fit; for ``names`` see `Parameters`."""
    # schemas with names of their own cannot truncate
    ways = "or ask for fewer new tokens"
    if not names:
        ways = "ask for fewer new tokens, or let truncate keep fewer of the prompt's tokens"
    max_name = (names or {}).get("max_new_tokens", "max_new_tokens")
    # clients of OpenAI's look for these words, from "this" to "tokens"
    return ContextOverflow(
        f"{where}: {num_prompt_tokens} prompt tokens and {max_name}={max_new_tokens} do not fit:"
        f" this model's maximum context length is {max_context} tokens; shorten the prompt, {ways}"
    )


def read_fields(
    values: Any, checks: Mapping[str, Check], where: str, elsewhere: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Check the fields of a JSON object. ``null`` means the default, so it is left out.

    Args:
        values: The object as parsed.
        checks: Every field there is.
        where: The object's own path, for errors.
        elsewhere: Fields that belong into another object, and what to say of each.

    Raises:
        BadRequest: Not an object, a name that is none of ours, or a value outside its range.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadRequest(f"{where}={shown(values)}: must be an object")
    for name in values:
        if name not in checks:
            raise BadRequest(f"{where}.{shown_name(name)}: {_unknown(name, checks, elsewhere)}")
    return {
        name: _checked(value, checks[name], f"{where}.{name}")
        for name, value in values.items()
        if value is not None
    }


def object_schema(checks: Mapping[str, Check], required: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON Schema of the objects that `read_fields` lets pass.

    Args:
        checks: Every field there is.
        required: Fields that have no default, so that ``null`` is no value for them.
    """
    null = {"type": "null"}
    return {
        "type": "object",
        "properties": {
            name: check.schema if name in required else {"anyOf": [check.schema, null]}
            for name, check in checks.items()
        },
        "required": list(required),
        "additionalProperties": False,
    }


def to_parameters(fields: Mapping[str, Any]) -> Parameters:
    """What the checked fields of `COMMON` ask for; those that were only to be checked are dropped."""
    given = dict(fields)
    if "eos_token_id" in given:
        given["eos_token_ids"] = given["eos_token_id"]
    if given.get("temperature") == 0:
        given |= {"do_sample": False, "temperature": 1.0}
    known = {name: given[name] for name in given if name in Parameters.__dataclass_fields__}
    return Parameters(**known, given=frozenset(fields))


def join_stops(fields: dict[str, Any], where: str) -> dict[str, Any]:
    """``stop`` and ``stop_sequences`` are two names for one field."""
    stop_sequences = fields.pop("stop_sequences", ())
    if stop_sequences and fields.get("stop"):
        raise BadRequest(f"{where}.stop_sequences: is another name for {where}.stop; send one of them")
    return {**fields, "stop": stop_sequences or fields.get("stop", ())}


def shown(value: Any) -> str:
    """A value as an error message quotes it: short, and always printable."""
    if value and isinstance(value, (list, dict)):
        return "[...]" if isinstance(value, list) else "{...}"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def shown_name(name: str) -> str:
    """A field's name as an error message quotes it."""
    return shown(name)[1:-1] if len(name) <= 50 else shown(name)


def check_text(text: str) -> str:
    """Refuse lone surrogates: JSON can spell them, no encoding can carry them."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}, not valid Unicode") from None
    return text


def checked_elsewhere(schema: Mapping[str, Any]) -> Check:
    """Let everything pass; ``schema`` is what the field may be after all checks."""
    return Check(lambda value: value, schema)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


string = Check(_string, {"type": "string"})
"""Check for a string, however long."""
boolean = Check(_boolean, {"type": "boolean"})
"""Check for ``true`` or ``false``."""


def integer(low: int, high: int, high_is: str = "") -> Check:
    """Check for a whole number; ``true`` is none. ``high_is`` says what bounds it where that is less."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high_is or high}")
        return value

    return Check(check, {"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float) -> Check:
    """Check for a number, both ends allowed."""

    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return float(value)

    return Check(check, {"type": "number", "minimum": low, "maximum": high})


def _probability(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= 1:
        raise ValueError("must be a number above 0 and at most 1")
    return float(value)


probability = Check(_probability, {"type": "number", "exclusiveMinimum": 0, "maximum": 1})
"""Check for a number above 0, at most 1."""


def only(*allowed: Any, why: str = "") -> Check:
    """Check for a value that changes nothing, where others are not supported."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(other) and value == other for other in allowed):
            values = " or ".join(shown(other) for other in allowed)
            raise ValueError(why or f"is not supported; leave it out or send {values}")
        return value

    return Check(check, {"enum": list(allowed)})


def _stops(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or len(strings) > MAX_STOPS:
        raise ValueError(f"must be a string or a list of at most {MAX_STOPS} strings")
    for string in strings:
        if not isinstance(string, str) or not 1 <= len(string) <= MAX_STOP_CHARS:
            raise ValueError(f"each must be a string of 1 to {MAX_STOP_CHARS} characters")
        check_text(string)
    return tuple(strings)


_STOP = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
stops = Check(_stops, {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": MAX_STOPS}]})
"""Check for one stop string or a list of them."""

MIN_TEMPERATURE = 1e-6
"""Below this, float32 logits overflow, and the most likely token would be drawn anyway."""
_SCALE = number(MIN_TEMPERATURE, 1e6)  # beyond this, they overflow too


def temperature(high: float) -> Check:
    """Check for a temperature, 0 to ``high``; what is nearly 0 is read as 0: the most likely token."""
    check = number(0, high)

    def read_temperature(value: Any) -> float:
        checked: float = check(value)
        return checked if checked >= MIN_TEMPERATURE else 0.0

    return Check(read_temperature, check.schema)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if len(ids) > MAX_TOKEN_IDS or not all(type(one) is int and 0 <= one <= MAX_TOKENS for one in ids):
        raise ValueError(
            f"must be a token id, 0 to {MAX_TOKENS}, or a list of at most {MAX_TOKEN_IDS} of them"
        )
    return tuple(ids)


_TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS}
token_ids = Check(
    _token_ids, {"anyOf": [_TOKEN_ID, {"type": "array", "items": _TOKEN_ID, "maxItems": MAX_TOKEN_IDS}]}
)
"""Check for one token id or a list of them. The vocabulary may lack some: the model never chooses those."""


def _or_minus_1(check: Check, stands_for: Any, says: str) -> Check:
    """The same check, but for -1, other servers' way to say something."""

    def read_value(value: Any) -> Any:
        if type(value) is int and value == -1:
            return stands_for
        try:
            return check(value)
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


_WORDS = {
    "type": "array",
    "items": {"type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_CHARS},
    "maxItems": MAX_BAD_WORDS,
}
_WORDS_IDS = {
    "type": "array",
    "items": {"type": "array", "items": _TOKEN_ID, "minItems": 1, "maxItems": MAX_BAD_WORD_IDS},
    "maxItems": MAX_BAD_WORDS,
}


def _early_stopping(value: Any) -> Any:
    return value if value == "never" else boolean(value)


early_stopping = Check(_early_stopping, {"anyOf": [boolean.schema, {"enum": ["never"]}]})
"""Check for when beams end: Transformers' three values."""

NEW_TOKENS = integer(1, MAX_TOKENS, "what the context holds")
"""Check for a number of new tokens; prompt and context are not known yet."""

EVERYWHERE: Mapping[str, Check] = {
    "top_k": _or_minus_1(integer(0, MAX_TOKENS), 0, "keeps all"),
    "top_p": probability,
    "min_p": number(0, 1),
    "typical_p": probability,
    "repetition_penalty": _SCALE,
    "no_repeat_ngram_size": integer(0, MAX_NGRAM),
    "bad_words": Check(_bad_words, _WORDS),
    "bad_words_ids": Check(_bad_words_ids, _WORDS_IDS),
    "stop_token_ids": token_ids,
    "seed": _or_minus_1(integer(0, (1 << 64) - 1), None, "draws one"),
}
"""The fields that every JSON schema has under these names; `Parameters` calls them so too."""

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
    # what Transformers' pipelines let pass, and clients of theirs send
    "min_length": integer(0, MAX_TOKENS),
    "max_length": NEW_TOKENS,
    "eos_token_id": token_ids,
    "num_beams": only(1, why=NO_BEAMS),
    # no effect without beams or padding
    "early_stopping": early_stopping,
    "length_penalty": number(-1e9, 1e9),
    "num_beam_groups": only(1),
    "diversity_penalty": number(0, 0),
    "pad_token_id": token_ids,
    "use_cache": boolean,
    "synced_gpus": boolean,
    "remove_invalid_values": boolean,
    # taken at the value that asks for nothing
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


def _checked(value: Any, check: Check, where: str) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise BadRequest(f"{where}={shown(value)}: {error}") from None


def _unknown(name: str, checks: Mapping[str, Check], elsewhere: Mapping[str, str]) -> str:
    """What to say of a name that an object does not have."""
    if name in elsewhere:
        return elsewhere[name]
    # comparing takes time with the name's length, which the client chooses
    near = difflib.get_close_matches(name[:64], [*checks, *elsewhere], n=1, cutoff=NEAR)
    if near:
        place = f", which {elsewhere[near[0]]}" if near[0] in elsewhere else ""
        return f"no such field; did you mean {near[0]}{place}?"
    return f"no such field; there are {', '.join(checks)}" if len(checks) <= MAX_LISTED else "no such field"
