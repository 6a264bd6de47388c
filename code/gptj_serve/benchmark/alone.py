"""One request at a time: the grid of the experiment, and the latency of streams."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from gptj_serve.benchmark import schedule
from gptj_serve.benchmark.results import FIRST_CELL, Cell, Run
from gptj_serve.benchmark.schedule import Step
from gptj_serve.benchmark.session import Session, as_run, check_alive
from gptj_serve.benchmark.target import Ask, Target


async def first_request(target: Target, number: int) -> tuple[Run, bool]:
    """The very first request; also tells whether the target streams.

    Args:
        target: Whom to ask.
        number: Of the run.

    Returns:
        The run, and whether tokens came one by one.
    """
    # nobody has asked it yet how many tokens its words have
    step, prompt = Step("latency", target.name, FIRST_CELL, number), " the" * FIRST_CELL.input_tokens
    answer = await target.ask(Ask(prompt, FIRST_CELL.output_tokens, stream=True))
    can_stream = bool(answer.token_s)
    if not can_stream:  # the multi-model-server front refuses it before the engine hears of it
        answer = await target.ask(Ask(prompt, FIRST_CELL.output_tokens))
    return as_run(step, answer, is_first=True), can_stream


async def warm_up(session: Session, cells: Sequence[Cell]) -> None:
    """Ask every target for a little of everything; nothing of it counts."""
    for cell in schedule.warm_up(cells):
        for name, target in session.targets.items():
            await target.ask(Ask(session.prompt(name, cell, 0, load="warm-up"), cell.output_tokens))


async def grid(session: Session, cells: Sequence[Cell], numbers: Mapping[str, Collection[int]]) -> None:
    """Whole round trips."""
    for step in schedule.left(schedule.steps("grid", cells, numbers, session.seed), session.results.runs):
        session.results.add([await session.run(step, stream=False)])
        check_alive(session.results.runs, step.target)


async def latency(
    session: Session,
    cells: Sequence[Cell],
    numbers: Mapping[str, Collection[int]],
    streaming: Collection[str],
) -> None:
    """Time to the first token and between tokens.

    Args:
        session: The targets.
        cells: What is asked for.
        numbers: By target, which runs it gets.
        streaming: Targets that stream. Of the others a call for one token is the time to the first, and what
            the whole call takes more is that of the others.
    """
    steps = schedule.steps("latency", cells, numbers, session.seed)
    for step in schedule.left(steps, [run for run in session.results.runs if not run.is_first]):
        if step.target in streaming:
            run = await session.run(step, stream=True)
        else:
            run = await _in_two_calls(session, step)
        session.results.add([run])
        check_alive(session.results.runs, step.target)


async def _in_two_calls(session: Session, step: Step) -> Run:
    prompt = session.prompt(step.target, step.cell, step.number, load=step.load)
    target = session.targets[step.target]
    one = await target.ask(Ask(prompt, 1))
    answer = await target.ask(Ask(prompt, step.cell.output_tokens))
    session.progress.advance(
        step.target,
        step.cell.output_tokens,
        one.seconds + answer.seconds,
        f"latency {step.cell} {step.target}",
    )
    token_s = () if one.error or answer.error else (one.seconds, answer.seconds)
    return as_run(step, replace(answer, token_s=token_s, error=answer.error or one.error))
