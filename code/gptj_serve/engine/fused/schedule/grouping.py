"""Which sequences of a step are decoded together. No torch here.

A sequence whose seed the client chose has to be computed in the same way whatever else runs: its prompt
alone, its tokens among so few rows that the kernels decode them, where a row does not depend on the others.
"""

from collections.abc import Collection, Sequence

from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row


def joining(step: ContinuousStep) -> list[int]:
    """The sequences that are decoded within the products of the step's prompts, where they cost nothing.

    Returns:
        Indexes of ``step.decodes``: none if a prompt has to be computed alone.
    """
    if not step.prefills or any(_is_reproducible(row) for row in step.prefills):
        return []
    return [place for place, row in enumerate(step.decodes) if not _is_reproducible(row)]


def groups(rows: Sequence[Row], max_small: int, *, without: Collection[int] = ()) -> list[list[int]]:
    """The sequences that are decoded together.

    Args:
        rows: One token each.
        max_small: Up to so many rows do not depend on each other; 0 if that is promised of none.
        without: Indexes of rows that are decoded elsewhere.

    Returns:
        Indexes of ``rows``, group by group.
    """
    places = [place for place in range(len(rows)) if place not in without]
    if len(places) <= max(max_small, 1):
        return [places] if places else []
    # others fill the last such group up: its bits do not depend on them
    places.sort(key=lambda place: not _is_reproducible(rows[place]))
    num_reproducible = sum(_is_reproducible(rows[place]) for place in places) if max_small else 0
    num_groups = -(-num_reproducible // max(max_small, 1))
    found = [places[at * max_small : (at + 1) * max_small] for at in range(num_groups)]
    rest = places[num_groups * max_small :]
    return [*found, rest] if rest else found


def _is_reproducible(row: Row) -> bool:
    return row.request.reproducible
