"""Plans which targets are up at the same time and what is still to be measured. Nothing is measured here."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from gptj_serve.benchmark.peers import ONE_AT_A_TIME
from gptj_serve.benchmark.results import ResultsFile
from gptj_serve.benchmark.run import schedule
from gptj_serve.benchmark.run.concurrent_load import LOAD, Burst, num_requests
from gptj_serve.benchmark.run.options import Options
from gptj_serve.benchmark.targets.sagemaker import MAX_CONCURRENCY
from gptj_serve.benchmark.targets.spawn import Spawn


@dataclass(frozen=True, slots=True)
class Turn:
    """Targets that are up at the same time.

    Attributes:
        urls, endpoints: Targets that run already, by name.
        spawns: Servers to start.
        number: Which of the rounds this is.
        num_turns: How many rounds there are.
    """

    urls: Mapping[str, str]
    endpoints: Mapping[str, str]
    spawns: tuple[Spawn, ...]
    number: int
    num_turns: int

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the targets."""
        return (*self.urls, *self.endpoints, *(spawn.name for spawn in self.spawns))

    def only(self, names: Collection[str]) -> "Turn":
        """The same turn with some of its targets."""
        return replace(
            self,
            urls={name: url for name, url in self.urls.items() if name in names},
            endpoints={name: endpoint for name, endpoint in self.endpoints.items() if name in names},
            spawns=tuple(spawn for spawn in self.spawns if spawn.name in names),
        )

    def share(self, runs: Mapping[str, int]) -> dict[str, range]:
        """The numbers of the runs that fall into this turn, by target."""
        return {name: schedule.share(runs[name], self.number, self.num_turns) for name in self.names}


def turns(options: Options) -> list[Turn]:
    """The turns that are taken, one after the other."""
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
        steps: Requests of the grid and of latency.
        bursts: The bursts of throughput.
        memory: Targets whose memory is to be measured.
    """

    steps: tuple[schedule.PlannedRequest, ...]
    bursts: tuple[Burst, ...]
    memory: tuple[str, ...]

    @property
    def tokens(self) -> Counter[str]:
        """How many tokens are to be generated, by target."""
        found: Counter[str] = Counter()
        for step in self.steps:
            found[step.target] += step.cell.output_tokens
        for burst in self.bursts:
            found[burst.target] += burst.tokens
        return found

    @property
    def names(self) -> set[str]:
        """Targets that still have something to do; only these need to be up."""
        return {*self.tokens, *self.memory}


def left(turn: Turn, options: Options, results: ResultsFile) -> Left:
    """What a turn still has to measure."""
    wanted: list[schedule.PlannedRequest] = []
    if "grid" in options.loads:
        wanted += schedule.steps("grid", options.cells, turn.share(options.runs), options.seed)
    if "latency" in options.loads:
        numbers = turn.share(options.latency_runs)
        wanted += schedule.steps("latency", options.latency_cells, numbers, options.seed)
    runs = [run for run in results.runs if not run.is_first]
    # throughput and memory are measured once, in the last round
    once = options.loads if turn.number == turn.num_turns - 1 else ()
    known = {one["target"] for one in results.memory}
    return Left(
        steps=tuple(schedule.left(wanted, runs)),
        bursts=tuple(_bursts(turn, options, results)) if "throughput" in once else (),
        memory=tuple(spawn.name for spawn in turn.spawns if "memory" in once and spawn.name not in known),
    )


def _bursts(turn: Turn, options: Options, results: ResultsFile) -> list[Burst]:
    """One level after the other, and in each level one target after the other."""
    done = {(run.target, run.cell, run.level) for run in results.runs if run.load == LOAD}
    cell = options.throughput_cell
    return [
        Burst(name, cell, level, num_requests(level, options.per_client, options.open_s))
        for level in options.levels
        for name in turn.names
        if (name, cell, level) not in done and (level.concurrency or 1) <= _max_concurrency(options, name)
    ]


def _max_concurrency(options: Options, name: str) -> float:
    """How many requests a target takes at the same time."""
    if name in options.endpoints:
        return MAX_CONCURRENCY
    is_alone = any(spawn.name == name and spawn.engine in ONE_AT_A_TIME for spawn in options.spawns)
    return 1 if is_alone else math.inf
