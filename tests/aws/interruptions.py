"""Commands that end in the middle, at each of their calls that change something."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from commands import Result

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.plan import Action

INTERRUPTED = 130


def interrupted_at_each_call(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[], Result]
) -> Iterator[tuple[int, str]]:
    """Run a command again and again, and end it before its first call, after it, before its second …

    Between two runs the caller looks, and makes things as they were at first.

    Yields:
        The number of the call, and "before" or "after".
    """
    apply, number = Action.apply, 0
    while True:
        for moment in ("before", "after"):
            if not _interrupt(monkeypatch, apply, run, number, moment):
                assert number, "nothing was interrupted"
                return
            yield number, moment
        number += 1


def _interrupt(
    monkeypatch: pytest.MonkeyPatch, apply: Any, run: Callable[[], Result], number: int, moment: str
) -> bool:
    calls = 0

    def counted(action: Action, aws: Aws) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == number + 1:
            if moment == "after":
                apply(action, aws)
            raise KeyboardInterrupt
        answer: dict[str, Any] = apply(action, aws)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Action, "apply", counted)
        result = run()
    was_interrupted = calls == number + 1 and result.code == INTERRUPTED
    assert was_interrupted or (result.code == 0 and calls <= number), result
    return was_interrupted
