"""Commands that end in the middle, at each of their calls that change something."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from commands import Result

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.plan import Action

INTERRUPTED = 130


def interrupted_at_each_call(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Result]) -> Iterator[int]:
    """Run a command again and again, and end it when its first call is done, its second …

    That is when AWS has done it and the command does not know yet. Between two runs the caller looks, and
    makes things as they were at first.

    Yields:
        The number of the call.
    """
    number = 0
    while _interrupt(monkeypatch, run, number):
        yield number
        number += 1
    assert number, "nothing was interrupted"


def _interrupt(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Result], number: int) -> bool:
    apply, calls = Action.apply, 0

    def counted(action: Action, aws: Aws) -> dict[str, Any]:
        nonlocal calls
        answer = apply(action, aws)
        calls += 1
        if calls == number + 1:
            raise KeyboardInterrupt
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Action, "apply", counted)
        result = run()
    was_interrupted = calls == number + 1 and result.code == INTERRUPTED
    assert was_interrupted or (result.code == 0 and calls <= number), result
    return was_interrupted
