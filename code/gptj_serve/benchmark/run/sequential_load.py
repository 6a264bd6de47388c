"""Makes one request at a time: the grid of whole calls, and the latency of streams."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from gptj_serve.benchmark.results import FIRST_CELL, Cell, Run
from gptj_serve.benchmark.run import schedule
from gptj_serve.benchmark.run.session import MAX_SILENT, Session, TargetGone, as_run, check_alive
from gptj_serve.benchmark.targets.target import Query, Target


async def first_request(target: Target, number: int) -> tuple[Run, bool]:
    """Make the very first request to a target, and find out whether it streams.

    Args:
        target: The target to ask.
        number: The number of the run.

    Returns:
        The run, and whether tokens came one by one.

    Raises:
        TargetGone: The target does not answer.
    """
    # the target has not been asked yet how many tokens its words have
    prompt = " the" * FIRST_CELL.input_tokens
    answer = await target.ask(Query(prompt, FIRST_CELL.output_tokens, stream=True))
    can_stream = bool(answer.token_s)
    if not can_stream:  # the multi-model-server front refuses it before the engine hears of it
        answer = await target.ask(Query(prompt, FIRST_CELL.output_tokens))
    if answer.error is not None:
        raise TargetGone(target.name, f"{target.name} does not answer: {answer.error}")
    step = schedule.PlannedRequest("latency", target.name, FIRST_CELL, number)
    return as_run(step, answer, is_first=True), can_stream


async def warm_up(session: Session, cells: Sequence[Cell]) -> None:
    """Ask every target for a few tokens of each prompt length; the answers do not count."""
    for cell in schedule.warm_up(cells):
        for name, target in session.targets.items():
            await target.ask(Query(session.prompt(name, cell, 0, load="warm-up"), cell.output_tokens))


async def one_by_one(
    session: Session, steps: Sequence[schedule.PlannedRequest], streaming: Collection[str]
) -> None:
    """Make whole round trips (the grid) and streams (latency).

    Args:
        session: The targets.
        steps: The requests, in the order in which they are made.
        streaming: Targets that stream. For the other targets, the time of a call for one token stands for the
            time to the first token, and the rest of a whole call for the time of the other tokens.
    """
    for step in steps:
        if step.load == "latency" and step.target not in streaming:
            run = await _in_two_calls(session, step)
        else:
            run = await session.run(step, stream=step.load == "latency")
        session.results.add([run])
        mine = [one for one in session.results.runs if one.target == step.target]
        check_alive(step.target, mine[-MAX_SILENT:])


async def _in_two_calls(session: Session, step: schedule.PlannedRequest) -> Run:
    prompt = session.prompt(step.target, step.cell, step.number, load=step.load)
    target = session.targets[step.target]
    one = await target.ask(Query(prompt, 1))
    answer = await target.ask(Query(prompt, step.cell.output_tokens))
    session.progress.advance(
        step.target,
        step.cell.output_tokens,
        one.seconds + answer.seconds,
        f"latency {step.cell} {step.target}",
    )
    token_s = () if one.error or answer.error else (one.seconds, answer.seconds)
    return as_run(step, replace(answer, token_s=token_s, error=answer.error or one.error))
