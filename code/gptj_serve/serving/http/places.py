"""The places for connections: who waits the longest without a request makes room for who comes."""

import resource
from typing import Protocol

SPARE_FILES = 64
"""Descriptors for all that is no connection."""


class Waiting(Protocol):
    """A connection that has no request that is being answered."""

    def give_up_place(self) -> None:
        """Close it, now."""


class Places:
    """The connections that can be given up, those that have waited the longest first."""

    def __init__(self) -> None:
        self._waiting: dict[Waiting, None] = {}

    def waits(self, connection: Waiting) -> None:
        """It begins to wait for a request to be whole, after its beginning or an answer."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def leaves(self, connection: Waiting) -> None:
        """It has a request, or has ended."""
        self._waiting.pop(connection, None)

    def make_room(self, newcomer: Waiting) -> bool:
        """Give up the one that has waited the longest; False if there is none but the newcomer."""
        longest = next((one for one in self._waiting if one is not newcomer), None)
        if longest is None:
            return False
        self.leaves(longest)
        longest.give_up_place()
        return True


def raise_file_limit() -> None:
    """Let this process have as many files as the system allows: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(wanted: int) -> int:
    """How many connections the limit of open files has room for, at most ``wanted``."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))
