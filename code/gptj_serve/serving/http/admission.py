"""Decides how many sequences the front admits, and when refused clients should come back. It does no I/O."""

import math
from collections import deque

from gptj_serve.errors import Overloaded

WINDOW_S = 30.0
"""The rate at which sequences end is measured over so many seconds."""
MIN_RETRY_S, MAX_RETRY_S = 1, 60


class Admission:
    """Counts the sequences that are in the engine or on their way to it.

    The front decides by itself, so that a refusal does not wait for a step of the engine to end.

    Args:
        capacity: How many sequences may be there at once: those of a batch, and those that may wait.
    """

    def __init__(self, capacity: int) -> None:
        self.num_inside = 0
        self._capacity = capacity
        self._ended: deque[tuple[float, int]] = deque()

    def enter(self, num_sequences: int, now_s: float) -> None:
        """Admit all sequences of a call, or none.

        Raises:
            Overloaded: There is no room; it says when there will be at the rate of the last half minute.
        """
        too_many = self.num_inside + num_sequences - self._capacity
        if too_many > 0 and self.num_inside > 0:
            raise Overloaded(
                f"the queue is full: {self.num_inside} sequences run or wait, {num_sequences} more "
                f"do not fit into the {self._capacity} that may; try again later",
                retry_after_s=self._retry_after_s(too_many, now_s),
            )
        self.num_inside += num_sequences

    def leave(self, num_sequences: int, now_s: float) -> None:
        """Note that sequences of a call have ended, however they did."""
        self.num_inside -= num_sequences
        self._ended.append((now_s, num_sequences))
        self._forget(now_s)

    def _retry_after_s(self, num_sequences: int, now_s: float) -> int:
        self._forget(now_s)
        if not self._ended:
            return int(WINDOW_S)  # there is no rate; requests of that length are not over sooner
        seconds = max(now_s - self._ended[0][0], 1.0)
        rate = sum(number for _, number in self._ended) / seconds
        return min(MAX_RETRY_S, max(MIN_RETRY_S, math.ceil(num_sequences / rate)))

    def _forget(self, now_s: float) -> None:
        while self._ended and self._ended[0][0] < now_s - WINDOW_S:
            self._ended.popleft()
