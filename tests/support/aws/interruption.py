"""Interrupts this process before one of its steps: a call of AWS, or a change through docker."""

import functools
import signal
from collections.abc import Callable
from typing import Any

from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.image.docker import Docker

Patch = Callable[[type, str, Callable[..., Any]], None]


class Interruption:
    """Raises a signal in this process once, before a step.

    Args:
        step: Which, 1 is the first.
        number: The signal.
        patch: Sets an attribute of a class, as `setattr` does.
    """

    def __init__(self, step: int, number: int, patch: Patch = setattr) -> None:
        self.is_done = False
        self._step, self._number, self._count = step, number, 0
        patch(Action, "apply", self._wrap(Action.apply))
        patch(Docker, "run", self._wrap(Docker.run))

    def _wrap(self, really: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(really)
        def counted(*arguments: Any, **named: Any) -> Any:
            self._count += 1
            if self._count == self._step:
                self.is_done = True
                signal.raise_signal(self._number)
            return really(*arguments, **named)

        return counted
