"""Finds stop strings wherever token borders fall, and cuts them out of the answer."""

from collections import deque
from collections.abc import Sequence


class StopFinder:
    """Looks for stop strings in text that comes in pieces.

    The first stop string to be complete ends the text at the character where it begins; of several that are
    complete at the same character, the longest counts. It makes no difference in which pieces the text comes.
    Hidden text is looked at, but is not a part of what comes out.

    Args:
        stops: The strings to look for, none of them empty.
        keep_stop: Whether what comes out includes the stop string, with hidden parts of it.
    """

    def __init__(self, stops: Sequence[str], keep_stop: bool = False) -> None:
        self._matchers = [_Matcher(stop) for stop in stops]
        self._keep_stop = keep_stop
        self._held: deque[tuple[str, bool]] = deque()
        self._num_held = 0
        self.found = False

    def push(self, text: str, hidden: bool = False) -> str:
        """Take the next piece.

        Returns:
            The text that can no longer belong to a stop string; empty once one was found.
        """
        if self.found:
            return ""
        if not self._matchers:
            return "" if hidden else text
        num_read = self._num_held
        if text:
            self._held.append((text, hidden))
            self._num_held += len(text)
        for char in text:
            num_read += 1
            lengths = [matcher.length for matcher in self._matchers if matcher.push(char)]
            if lengths:
                self.found = True
                before = self._release(num_read - max(lengths))
                return before + (self._release(max(lengths), with_hidden=True) if self._keep_stop else "")
        num_undecided = max(matcher.num_matched for matcher in self._matchers)
        return self._release(self._num_held - num_undecided)

    def finish(self) -> str:
        """End the text; returns what was held back, unless a stop was found. Later text is not looked at."""
        self._matchers = []
        return "" if self.found else self._release(self._num_held)

    def _release(self, num_chars: int, with_hidden: bool = False) -> str:
        self._num_held -= num_chars
        released = []
        while num_chars:
            text, hidden = self._held.popleft()
            if len(text) > num_chars:
                self._held.appendleft((text[num_chars:], hidden))
                text = text[:num_chars]
            num_chars -= len(text)
            if with_hidden or not hidden:
                released.append(text)
        return "".join(released)


class _Matcher:
    """Knuth-Morris-Pratt for one string, with constant amortised time a character."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._borders = _borders(pattern)
        self.length = len(pattern)
        self.num_matched = 0

    def push(self, char: str) -> bool:
        """Whether the pattern is complete with this character (nothing may be pushed after that)."""
        while self.num_matched and self._pattern[self.num_matched] != char:
            self.num_matched = self._borders[self.num_matched - 1]
        if self._pattern[self.num_matched] == char:
            self.num_matched += 1
        return self.num_matched == self.length


def _borders(pattern: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(pattern)
    length = 0
    for index in range(1, len(pattern)):
        while length and pattern[index] != pattern[length]:
            length = borders[length - 1]
        if pattern[index] == pattern[length]:
            length += 1
        borders[index] = length
    return borders
