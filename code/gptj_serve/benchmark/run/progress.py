"""Shows on stderr how far a measurement is: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

LINE_INTERVAL_S = 10.0


class Progress:
    """Counts tokens, and estimates the time left from each target's own pace: some are ten times slower.

    Args:
        left: How many tokens are still to come, by target.
    """

    def __init__(self, left: Mapping[str, int]) -> None:
        self._left = dict(left)
        self._total = sum(left.values())
        self._tokens: defaultdict[str, int] = defaultdict(int)
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._said_s = 0.0
        layout = "{percentage:3.0f}% |{bar}| {elapsed} gone{postfix}"
        self._bar: tqdm[Any] | None = (
            tqdm(total=self._total, bar_format=layout, postfix="", dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def advance(self, target: str, tokens: int, seconds: float, what: str) -> None:
        """Count tokens that are done.

        Args:
            target: The target that generated them.
            tokens: How many there are.
            seconds: How long they took.
            what: What was measured, in a few words.
        """
        self._tokens[target] += tokens
        self._seconds[target] += seconds
        self._left[target] = max(0, self._left.get(target, 0) - tokens)
        text = f"{_clock(self.seconds_left())} left: {what}"
        if self._bar is not None:
            self._bar.postfix = text
            self._bar.update(tokens)
        elif time.monotonic() - self._said_s > LINE_INTERVAL_S:
            self._said_s = time.monotonic()
            done = 100 * (1 - sum(self._left.values()) / max(1, self._total))
            self.say(f"{done:.0f} %, {text}")

    def seconds_left(self) -> float:
        """Seconds until all is done, as far as paces are known; a target without a pace has the mean."""
        tokens, seconds = sum(self._tokens.values()), sum(self._seconds.values())
        mean = tokens / seconds if seconds else 0.0
        paces = {
            name: self._tokens[name] / self._seconds[name] for name in self._tokens if self._seconds[name]
        }
        return sum(left / paces.get(name, mean) for name, left in self._left.items() if paces.get(name, mean))

    def say(self, line: str) -> None:
        """Write a line on stderr, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the bar on the screen as it is."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
