"""Which sequences of a step are decoded together."""

import pytest

from gptj_serve.engine.fused.schedule.grouping import groups, joining
from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row
from gptj_serve.request import GenerationRequest, SamplingParams


def row(name: str, *, prompt: tuple[int, ...] | None = None) -> Row:
    """A row to decode, or a prompt; capitals stand for a seed of the client's."""
    request = GenerationRequest(name, (1, 2), SamplingParams(4), reproducible=name.isupper())
    return Row(0, 0, request, 0, [0], 2, prompt, samples=True)


def step(prompts: str, decodes: str) -> ContinuousStep:
    return ContinuousStep(
        tuple(row(name, prompt=(1, 2)) for name in prompts), tuple(row(name) for name in decodes)
    )


@pytest.mark.parametrize(
    ("prompts", "decodes", "expected"),
    [
        ("", "abc", ""),
        ("p", "abc", "abc"),
        ("pq", "aBc", "ac"),
        ("P", "abc", ""),
        ("p", "", ""),
        ("p", "AB", ""),
    ],
)
def test_who_joins_the_prompts(prompts: str, decodes: str, expected: str) -> None:
    assert [decodes[place] for place in joining(step(prompts, decodes))] == list(expected)


@pytest.mark.parametrize(
    ("decodes", "max_small", "without", "expected"),
    [
        ("", 2, "", []),
        ("ab", 2, "", ["ab"]),
        ("AB", 2, "", ["AB"]),
        ("abcd", 2, "", ["abcd"]),
        ("aBcd", 2, "", ["Ba", "cd"]),
        ("ABcD", 2, "", ["AB", "Dc"]),
        ("aBcd", 2, "acd", ["B"]),
        ("abcd", 2, "abcd", []),
        ("aBcd", 0, "", ["Bacd"]),
    ],
)
def test_groups(decodes: str, max_small: int, without: str, expected: list[str]) -> None:
    rows = [row(name) for name in decodes]
    left_out = [decodes.index(name) for name in without]
    found = groups(rows, max_small, without=left_out)
    assert ["".join(decodes[place] for place in group) for group in found] == expected
