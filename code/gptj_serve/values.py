"""Values of command lines: each is checked, and an error names what is allowed."""

import argparse
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number in a range."""

    def parse_whole(raw: str) -> int:
        if not raw.isascii() or not raw.isdigit() or not low <= int(raw) <= high:
            raise argparse.ArgumentTypeError(f"{raw!r} must be a whole number from {low} to {high}")
        return int(raw)

    return parse_whole


def number(low: float, high: float) -> Callable[[str], float]:
    """A number in a range."""

    def parse_number(raw: str) -> float:
        try:
            value = float(raw)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{raw!r} must be a number from {low:g} to {high:g}")
        return value

    return parse_number


def listed(parse_one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values with commas between them: at least one, and each of them once."""

    def parse_listed(raw: str) -> list[T]:
        found = list(dict.fromkeys(parse_one(one) for one in texts(raw)))
        if not found:
            raise argparse.ArgumentTypeError(f"{raw!r} has no value")
        return found

    return parse_listed


def one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    """A word out of several."""

    def parse_one_of(raw: str) -> str:
        if raw not in allowed:
            raise argparse.ArgumentTypeError(f"{raw!r} must be of {', '.join(allowed)}")
        return raw

    return parse_one_of


def wholes(low: int, high: int) -> Callable[[str], list[int]]:
    """Whole numbers with commas between them."""
    return listed(whole(low, high))


def texts(raw: str) -> list[str]:
    """What stands between commas."""
    return [one.strip() for one in raw.split(",") if one.strip()]
