"""Who is measured together with whom, and what is still to be measured. Nothing here measures."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from gptj_serve.benchmark import schedule, together
from gptj_serve.benchmark.options import Options
from gptj_serve.benchmark.results import Results
from gptj_serve.benchmark.schedule import Step
from gptj_serve.benchmark.spawn import Spawn


@dataclass(frozen=True, slots=True)
class Turn:
    """Targets that are up at the same time.

    Attributes:
        urls, endpoints: Those that run already, by name.
        spawns: Those to start.
        number: Which of the rounds this is.
        num_turns: How many there are.
    """

    urls: Mapping[str, str]
    endpoints: Mapping[str, str]
    spawns: tuple[Spawn, ...]
    number: int
    num_turns: int

    @property
    def names(self) -> tuple[str, ...]:
        """The targets."""
        return (*self.urls, *self.endpoints, *(spawn.name for spawn in self.spawns))

    def share(self, runs: Mapping[str, int]) -> dict[str, range]:
        """The numbers of the runs that fall into it, by target."""
        return {name: schedule.share(runs[name], self.number, self.num_turns) for name in self.names}


def turns(options: Options) -> list[Turn]:
    """Who is up together, one after the other."""
    if options.together or len(options.spawns) < 2:
        return [Turn(options.urls, options.endpoints, options.spawns, 0, 1)]
    running = [Turn(options.urls, options.endpoints, (), 0, 1)] if options.urls or options.endpoints else []
    return running + [
        Turn({}, {}, (spawn,), number, options.rounds)
        for number in range(options.rounds)
        for spawn in options.spawns
    ]


@dataclass(frozen=True, slots=True)
class Left:
    """What a turn still has to measure.

    Attributes:
        steps: Of the grid and of latency.
        levels: Of throughput, as target and tokens.
        memory: Targets.
    """

    steps: tuple[Step, ...]
    levels: tuple[tuple[str, int], ...]
    memory: tuple[str, ...]

    @property
    def tokens(self) -> Counter[str]:
        """To be generated, by target."""
        found: Counter[str] = Counter()
        for step in self.steps:
            found[step.target] += step.cell.output_tokens
        for name, tokens in self.levels:
            found[name] += tokens
        return found

    @property
    def is_nothing(self) -> bool:
        """All is measured."""
        return not (self.steps or self.levels or self.memory)


def left(turn: Turn, options: Options, results: Results) -> Left:
    """What a turn still has to measure."""
    wanted: list[Step] = []
    if "grid" in options.loads:
        wanted += schedule.steps("grid", options.cells, turn.share(options.runs), options.seed)
    if "latency" in options.loads:
        numbers = turn.share(options.latency_runs)
        wanted += schedule.steps("latency", options.latency_cells, numbers, options.seed)
    runs = [run for run in results.runs if not run.is_first]
    is_last = turn.number == turn.num_turns - 1  # throughput and memory are measured once
    known = {one["target"] for one in results.memory}
    return Left(
        steps=tuple(schedule.left(wanted, runs)),
        levels=tuple(_levels(turn, options, results)) if is_last else (),
        memory=tuple(
            spawn.name
            for spawn in turn.spawns
            if is_last and "memory" in options.loads and spawn.name not in known
        ),
    )


def _levels(turn: Turn, options: Options, results: Results) -> list[tuple[str, int]]:
    if "throughput" not in options.loads:
        return []
    cell = options.throughput_cell
    return [
        (name, cell.output_tokens * together.num_requests(level, options.per_client, options.open_s))
        for level in options.levels
        for name in turn.names
        if not together.is_done(results.runs, name, cell, level)
    ]
