"""Reads the fields of a config.json, each with its type and range; an error names the field."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError

CONFIG = "config.json"


def check_plain(raw: Mapping[str, Any], path: Path) -> None:
    """Refuse what would make Transformers load something else than the files that were checked."""
    for key in ("quantization_config", "transformers_weights", "fusion_config"):
        if raw.get(key) is not None:
            raise StartupError(f"{path}: {key} is not supported; remove it and give plain float weights")


def architectures(raw: Mapping[str, Any], path: Path, example: str) -> list[str]:
    """The names in ``architectures``; empty if it is not given.

    Raises:
        StartupError: It is no list of names.
    """
    names = raw.get("architectures")
    names = [] if names is None else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StartupError(f'{path}: architectures={names!r}: must be a list of names, ["{example}"]')
    return names


def whole_number(
    raw: Mapping[str, Any], key: str, path: Path, default: int | None, least: int, most: int
) -> int:
    """Read a whole number in its range.

    Raises:
        StartupError: It is another value; names file, field and range.
    """
    value = raw.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise StartupError(f"{path}: {key}={_short(value)}: must be a whole number from {least} to {most}")
    return value


def fraction(raw: Mapping[str, Any], key: str, path: Path) -> float:
    """Read a number from 0 to 1 that has to be given.

    Raises:
        StartupError: It is another value; names file, field and range.
    """
    value = raw[key]
    # Transformers takes whole numbers only for some of these
    is_number = type(value) is float or (type(value) is int and key.endswith("pdrop"))
    if not is_number or not (math.isfinite(value) and 0 <= value <= 1):
        raise StartupError(f"{path}: {key}={_short(value)}: must be a number from 0.0 to 1.0, as 0.00001")
    return float(value)


def flag(raw: Mapping[str, Any], key: str, path: Path, default: bool) -> bool:
    """Read ``true`` or ``false``.

    Raises:
        StartupError: It is another value; names file and field.
    """
    value = raw.get(key, default)
    if not isinstance(value, bool):
        raise StartupError(f"{path}: {key}={value!r}: must be true or false")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"
