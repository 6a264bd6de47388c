"""The targets that are up at the same time, and single requests to them, which become runs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptj_serve.benchmark.results import Cell, Level, ResultsFile, Run
from gptj_serve.benchmark.run.progress import Progress
from gptj_serve.benchmark.run.prompts import Vocabulary, calibrate
from gptj_serve.benchmark.run.schedule import PlannedRequest
from gptj_serve.benchmark.targets.target import Query, Target, TimedAnswer
from gptj_serve.errors import StartupError

NO_LEVEL = Level()
SILENT = (0, 503)
MAX_SILENT = 3
"""A target is given up after so many requests in a row without an answer of the engine."""


class TargetGone(Exception):
    """A target does not answer any more.

    Attributes:
        name: The target's name.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Session:
    """What all loads work with.

    Attributes:
        targets: The targets by name, in the order in which they take turns.
        vocabularies: What each target's prompts are made of.
        results: Where runs are kept.
        progress: Where progress is shown.
        seed: The seed of prompts and orders.
    """

    targets: Mapping[str, Target]
    vocabularies: Mapping[str, Vocabulary]
    results: ResultsFile
    progress: Progress
    seed: int

    def prompt(self, target: str, cell: Cell, number: int, *, load: str) -> str:
        """The prompt of a run: the same for all targets that count tokens alike."""
        return self.vocabularies[target].prompt(cell.input_tokens, f"{self.seed}/{load}/{cell}/{number}")

    async def run(self, step: PlannedRequest, *, stream: bool) -> Run:
        """Make a planned request."""
        prompt = self.prompt(step.target, step.cell, step.number, load=step.load)
        answer = await self.targets[step.target].ask(Query(prompt, step.cell.output_tokens, stream))
        run = as_run(step, answer)
        self.progress.advance(
            step.target, step.cell.output_tokens, run.seconds, f"{step.load} {step.cell} {step.target}"
        )
        return run


async def vocabularies(targets: Mapping[str, Target]) -> dict[str, Vocabulary]:
    """What each target's prompts are made of.

    Raises:
        TargetGone: A target does not answer.
        StartupError: It does not say how many tokens a prompt has.
    """
    return {name: await _vocabulary(target) for name, target in targets.items()}


async def _vocabulary(target: Target) -> Vocabulary:
    async def count_tokens(text: str) -> int:
        answer = await target.ask(Query(text, 1))
        if answer.error is not None:
            raise TargetGone(target.name, f"{target.name} does not answer: {answer.error}")
        if answer.prompt_tokens is None:
            raise StartupError(
                f"{target.name} does not say how many tokens a prompt has (usage.prompt_tokens)"
            )
        return answer.prompt_tokens

    return await calibrate(count_tokens)


def as_run(
    step: PlannedRequest,
    answer: TimedAnswer,
    *,
    level: Level = NO_LEVEL,
    is_first: bool = False,
    late_s: float = 0.0,
) -> Run:
    """A request and its answer as a run.

    Args:
        step: The request that was planned.
        answer: What came back.
        level: The level of a throughput run.
        is_first: See `Run`.
        late_s: How many seconds after its time it was sent.
    """
    times = answer.token_s[: step.cell.output_tokens]  # the finish reason may come as an event of its own
    started_s = time.time() - (time.monotonic() - answer.asked_s) - late_s
    return Run(
        load=step.load,
        target=step.target,
        input_tokens=step.cell.input_tokens,
        output_tokens=step.cell.output_tokens,
        number=step.number,
        started_s=round(started_s, 6),
        seconds=round(answer.seconds + late_s, 6),
        status=answer.status,
        ttft_s=round(times[0], 6) if times else None,
        tpot_s=round((times[-1] - times[0]) / (step.cell.output_tokens - 1), 7) if len(times) > 1 else None,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        concurrency=level.concurrency,
        rate=level.rate,
        is_first=is_first,
        problem=_problem(step.cell, answer),
    )


def _problem(cell: Cell, answer: TimedAnswer) -> str | None:
    if answer.error is not None:
        return answer.error
    got = (answer.prompt_tokens, answer.completion_tokens)
    if got != (cell.input_tokens, cell.output_tokens):
        return f"{got[0]} tokens in and {got[1]} out, not {cell.input_tokens} and {cell.output_tokens}"
    return None


def check_alive(name: str, last: Sequence[Run]) -> None:
    """Give a target up when none of these runs had an answer, or only that there is no engine any more.

    Args:
        name: The target's name.
        last: Its last runs; fewer than `MAX_SILENT` are not enough to give it up.

    Raises:
        TargetGone: The target is given up.
    """
    if len(last) >= MAX_SILENT and all(run.has_failed and run.status in SILENT for run in last):
        cure = "--retry-failed makes what failed again"
        raise TargetGone(name, f"{name} does not answer any more: {last[-1].problem}; {cure}")
