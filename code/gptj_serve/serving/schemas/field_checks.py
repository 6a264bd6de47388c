"""Checks what fields of a request's body may be: single values, and the objects that have them.

Everything is checked before anything reaches the engine; an error names the field, its value and what is
allowed.
"""

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gptj_serve.errors import BadRequest

MAX_STOPS = 16
MAX_STOP_CHARS = 1000
MAX_TOKENS = 1 << 20
MAX_TOKEN_IDS = 128
NEAR = 0.82
"""How alike (0 to 1) a wrong name and a suggestion are: a slip of the pen, not ``top_n`` and ``top_p``."""
MAX_LISTED = 8
"""An object with more fields than this is not listed in an error."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a field of a body may be.

    Attributes:
        read: Returns the value to use, or raises a `ValueError` that says what is allowed.
        schema: What the field may be, as a JSON Schema. The schema may allow more, where that depends on
            other fields or on the model.
    """

    read: Callable[[Any], Any]
    schema: Mapping[str, Any]


def read_fields(
    values: Any, checks: Mapping[str, Check], where: str, elsewhere: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Check the fields of a JSON object. ``null`` means the default, so it is left out.

    Args:
        values: The object as parsed.
        checks: All fields that there are.
        where: The object's own path, for errors.
        elsewhere: Fields that belong into another object, and what to say about each.

    Raises:
        BadRequest: It is no object, has an unknown name, or a value outside of its range.
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


def shown(value: Any) -> str:
    """A value as an error message quotes it, short and always printable."""
    if value and isinstance(value, (list, dict)):
        return "[...]" if isinstance(value, list) else "{...}"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def shown_name(name: str) -> str:
    """A field's name as an error message quotes it."""
    return shown(name)[1:-1] if len(name) <= 50 else shown(name)


def check_text(text: str) -> str:
    """Refuse lone surrogates, which JSON can spell but no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"has a lone surrogate at character {error.start}, not valid Unicode") from None
    return text


def checked_elsewhere(schema: Mapping[str, Any]) -> Check:
    """A check that lets everything pass; ``schema`` is what the field may be after all checks."""
    return Check(lambda value: value, schema)


def _of_type(kind: type, name: str, must_be: str) -> Check:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"must be {must_be}")
        return value

    return Check(check, {"type": name})


string = _of_type(str, "string", "a string")
"""Check for a string, however long."""
boolean = _of_type(bool, "boolean", "true or false")
"""Check for ``true`` or ``false``."""
any_object = _of_type(dict, "object", "an object")
"""Check for an object, whatever is in it."""


def integer(low: int, high: int, high_is: str = "") -> Check:
    """Check for a whole number, which ``true`` is not; ``high_is`` says what bounds it below ``high``."""

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


def temperature(high: float) -> Check:
    """Check for a temperature, 0 to ``high``; near 0 it is read as 0, which takes the most likely token."""
    check = number(0, high)

    def read_temperature(value: Any) -> float:
        checked: float = check.read(value)
        return checked if checked >= MIN_TEMPERATURE else 0.0

    return Check(read_temperature, check.schema)


def _token_ids(value: Any) -> tuple[int, ...]:
    ids = value if isinstance(value, list) else [value]
    if len(ids) > MAX_TOKEN_IDS or not all(type(one) is int and 0 <= one <= MAX_TOKENS for one in ids):
        raise ValueError(
            f"must be a token id, 0 to {MAX_TOKENS}, or a list of at most {MAX_TOKEN_IDS} of them"
        )
    return tuple(ids)


TOKEN_ID = {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS}
token_ids = Check(
    _token_ids, {"anyOf": [TOKEN_ID, {"type": "array", "items": TOKEN_ID, "maxItems": MAX_TOKEN_IDS}]}
)
"""Check for a token id or a list of them. The model never chooses ids that its vocabulary lacks."""


def _checked(value: Any, check: Check, where: str) -> Any:
    try:
        return check.read(value)
    except ValueError as error:
        raise BadRequest(f"{where}={shown(value)}: {error}") from None


def _unknown(name: str, checks: Mapping[str, Check], elsewhere: Mapping[str, str]) -> str:
    """What to say about a name that an object does not have."""
    if name in elsewhere:
        return elsewhere[name]
    # comparing takes time with the name's length, which the client chooses
    near = difflib.get_close_matches(name[:64], [*checks, *elsewhere], n=1, cutoff=NEAR)
    if near:
        place = f", which {elsewhere[near[0]]}" if near[0] in elsewhere else ""
        return f"no such field; did you mean {near[0]}{place}?"
    return f"no such field; there are {', '.join(checks)}" if len(checks) <= MAX_LISTED else "no such field"
