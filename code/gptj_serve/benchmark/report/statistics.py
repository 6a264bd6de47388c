"""Statistics over runs, all of them arithmetic that can be done by hand."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptj_serve.benchmark.results import Cell, Run

BYTES_OF_CACHE = 2
"""Bytes of a number in the KV cache."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation; the latter is 0 for a single value."""

    mean: float
    sd: float

    @staticmethod
    def of(values: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)


def percentile(values: Sequence[float], percent: float) -> float:
    """A percentile, interpolated linearly between the two nearest of the sorted values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def tokens_per_s(runs: Sequence[Run]) -> Spread:
    """Mean and deviation of each run's output tokens over its whole call."""
    return Spread.of([run.output_tokens / run.seconds for run in runs])


def pace(runs: Sequence[Run]) -> float:
    """All output tokens over all seconds: what a machine that only does this gets done, and what it costs.

    This is less than the mean of `tokens_per_s`, in which slow runs count as much as fast ones.
    """
    return sum(run.output_tokens for run in runs) / sum(run.seconds for run in runs)


def mean_seconds(cells: Mapping[tuple[str, Cell], Sequence[Run]], target: str) -> dict[Cell, float]:
    """The mean whole call of each of a target's cells."""
    return {
        cell: statistics.fmean(run.seconds for run in runs)
        for (name, cell), runs in cells.items()
        if name == target
    }


def reductions(seconds: Mapping[Cell, float], baseline: Mapping[Cell, float]) -> dict[Cell, float]:
    """How much shorter mean calls are than the baseline's, as parts of those; negative where longer."""
    return {cell: 1 - seconds[cell] / baseline[cell] for cell in sorted(seconds) if cell in baseline}


def level_tokens_per_s(runs: Sequence[Run]) -> float:
    """All tokens of a level over the time from its first request to its last answer."""
    answered = [run for run in runs if not run.is_refused]
    if not answered:
        return 0.0
    ended_s = max(run.started_s + run.seconds for run in answered)
    return sum(run.output_tokens for run in answered) / (ended_s - min(run.started_s for run in runs))


def weight_bytes_read(model: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    """Bytes of weights that a decoded token reads: all but the embedding. None if their size is not known."""
    if "weight_bytes" in facts:
        bytes_per_weight = round(facts["weight_bytes"] / model["num_weights"], 2)
    elif "bytes_per_weight" in facts:
        bytes_per_weight = facts["bytes_per_weight"]
    else:
        return None
    read = model["num_weights"] - model["vocab_size"] * model["width"]
    return float(read * bytes_per_weight)


def limit_seconds(
    model: Mapping[str, Any], weight_bytes: float, cell: Cell, read_bytes_per_s: float
) -> float:
    """The least time that a call can take: weights and cache are read once for each token."""
    per_position: float = 2 * model["num_layers"] * model["width"] * BYTES_OF_CACHE
    inputs, outputs = cell.input_tokens, cell.output_tokens
    num_read = outputs * inputs + outputs * (outputs + 1) / 2
    return (outputs * weight_bytes + num_read * per_position) / read_bytes_per_s


def usd_per_million_tokens(usd_per_hour: float, tokens_per_s: float) -> float:
    """The price of a million tokens at a given pace."""
    return usd_per_hour / 3600 / tokens_per_s * 1e6
