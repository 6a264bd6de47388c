"""The random numbers: fixed bits, even spread, no torch."""

import itertools
import subprocess
import sys

import pytest

from gptj_serve.engine.sampling.uniform import mix, uniform


def test_mix_is_splitmix64() -> None:
    golden = 0x9E3779B97F4A7C15
    # the first outputs of the published generator seeded with 0
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix(golden * step) for step in (1, 2, 3)] == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ((0, 0, 0), 0.13870941014555427),
        ((1, 2, 3), 0.814259011529328),
        ((2**64 - 1, 3, 2047), 0.32432216482315934),
    ],
)
def test_bits_never_change(key: tuple[int, int, int], expected: float) -> None:
    assert uniform(*key) == expected


@pytest.mark.parametrize("varied", [0, 1, 2])
def test_each_word_of_the_key_spreads_evenly(varied: int) -> None:
    draws = [uniform(*(n if word == varied else 7 for word in range(3))) for n in range(10_000)]
    bins = [0] * 20
    for draw in draws:
        assert 0.0 <= draw < 1.0
        bins[int(draw * 20)] += 1
    chi_square = sum((count - 500) ** 2 / 500 for count in bins)
    assert chi_square < 43.8  # 19 degrees of freedom, significance 0.001
    assert len(set(draws)) == len(draws)


def test_neighbouring_keys_are_unrelated() -> None:
    """Serial correlation of consecutive positions, and of seeds: near 0 within 4 standard errors."""
    for keys in ([(5, 0, n) for n in range(10_000)], [(n, 0, 0) for n in range(10_000)]):
        draws = [uniform(*key) - 0.5 for key in keys]
        correlation = sum(a * b for a, b in itertools.pairwise(draws)) / len(draws) * 12
        assert abs(correlation) < 4 / len(draws) ** 0.5


def test_words_are_not_interchangeable() -> None:
    assert len({uniform(1, 2, 3), uniform(2, 1, 3), uniform(1, 3, 2), uniform(0, 0, 6)}) == 4


def test_imports_no_torch() -> None:
    code = "import sys, gptj_serve.engine.sampling.uniform; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
