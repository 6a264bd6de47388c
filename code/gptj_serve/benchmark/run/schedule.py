"""Plans the order of requests. Nothing is measured here."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gptj_serve.benchmark.results import Cell, Run

WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a cell.

    Attributes:
        load: "grid", "latency" or "throughput".
        target: The target's name.
        cell: The size of the request.
        number: Counts the cell's requests.
    """

    load: str
    target: str
    cell: Cell
    number: int


def steps(
    load: str, cells: Sequence[Cell], numbers: Mapping[str, Collection[int]], seed: int
) -> list[PlannedRequest]:
    """All requests: each number has its cells in an order of its own, with the targets in turn in each cell.

    So all targets meet the same conditions (A B A B), and no cell is always first.

    Args:
        load: The load of all requests.
        cells: The sizes that are asked for.
        numbers: By target, which of a cell's requests it gets.
        seed: The seed of the cells' order.
    """
    found = []
    for number in sorted(set().union(*numbers.values())):
        shuffled = random.Random(f"{seed}/{load}/{number}").sample(cells, len(cells))
        found += [
            PlannedRequest(load, target, cell, number)
            for cell in shuffled
            for target, wanted in numbers.items()
            if number in wanted
        ]
    return found


def left(wanted: Sequence[PlannedRequest], runs: Sequence[Run]) -> list[PlannedRequest]:
    """The requests of which there are no runs yet."""
    done = {PlannedRequest(run.load, run.target, run.cell, run.number) for run in runs}
    return [step for step in wanted if step not in done]


def share(num_runs: int, turn: int, num_turns: int) -> range:
    """The numbers of the runs that fall into one of several rounds; all rounds get equally many."""
    return range(num_runs * turn // num_turns, num_runs * (turn + 1) // num_turns)


def warm_up(cells: Sequence[Cell]) -> list[Cell]:
    """What a server is asked before anything counts: a few tokens for each length of a prompt."""
    return [
        Cell(num, min(WARM_UP_TOKENS, max(cell.output_tokens for cell in cells if cell.input_tokens == num)))
        for num in sorted({cell.input_tokens for cell in cells})
    ]
