"""Reads values of settings and command lines; each is checked, and an error names what is allowed."""

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def integer(low: int, high: int) -> Callable[[str], int]:
    """A reader of a setting's whole number; it raises a ValueError that says what is allowed."""
    allowed = f"must be {low}" if low == high else f"must be a whole number from {low} to {high}"

    def parse(raw: str) -> int:
        # int() would also take "1_0" and the digits of other scripts
        if not raw.isascii() or not raw.isdigit() or not low <= int(raw) <= high:
            raise ValueError(allowed)
        return int(raw)

    return parse


def real(low: float, high: float) -> Callable[[str], float]:
    """A reader of a setting's number; it raises a ValueError that says what is allowed."""

    def parse(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return value

    return parse


def whole(low: int, high: int) -> Callable[[str], int]:
    """A reader of an option's whole number in a range."""
    return _option(integer(low, high))


def number(low: float, high: float) -> Callable[[str], float]:
    """A reader of an option's number in a range."""
    return _option(real(low, high))


def _option(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Turn a reader's ValueError into what argparse shows."""

    def parse_option(raw: str) -> T:
        try:
            return parse(raw)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{raw!r} {error}") from None

    return parse_option


def listed(parse_one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A reader of values with commas between them: at least one, and each of them once."""

    def parse_listed(raw: str) -> list[T]:
        found = list(dict.fromkeys(parse_one(one) for one in texts(raw)))
        if not found:
            raise argparse.ArgumentTypeError(f"{raw!r} has no value")
        return found

    return parse_listed


def one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    """A reader of one of several words."""

    def parse_one_of(raw: str) -> str:
        if raw not in allowed:
            raise argparse.ArgumentTypeError(f"{raw!r} must be of {', '.join(allowed)}")
        return raw

    return parse_one_of


def wholes(low: int, high: int) -> Callable[[str], list[int]]:
    """A reader of whole numbers with commas between them."""
    return listed(whole(low, high))


def texts(raw: str) -> list[str]:
    """The texts between commas."""
    return [one.strip() for one in raw.split(",") if one.strip()]
