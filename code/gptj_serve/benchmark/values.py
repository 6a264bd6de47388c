"""Values of command lines: each is checked, and an error names what is allowed."""

import argparse
from collections.abc import Callable
from typing import TypeVar

from gptj_serve.benchmark.results import Cell

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
    """Values with commas between them."""
    return lambda raw: [parse_one(one) for one in texts(raw)]


def wholes(low: int, high: int) -> Callable[[str], list[int]]:
    """Whole numbers with commas between them."""
    return listed(whole(low, high))


def texts(raw: str) -> list[str]:
    """What stands between commas."""
    return [one.strip() for one in raw.split(",") if one.strip()]


def cell(raw: str) -> Cell:
    """Input x output tokens."""
    input_tokens, _, output_tokens = raw.partition("x")
    number = whole(1, 1 << 20)
    try:
        return Cell(number(input_tokens), number(output_tokens))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{raw!r} must be input x output tokens such as 200x100") from None
