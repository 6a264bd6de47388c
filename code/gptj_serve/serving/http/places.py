"""The places for connections: the one that has waited the longest makes room for a new one."""

import resource
from typing import Protocol

SPARE_FILES = 64
"""How many descriptors are kept for everything that is no connection."""


class Waiting(Protocol):
    """A connection that waits, with no request that is being answered."""

    def give_up_place(self) -> None:
        """Close the connection now."""


class Places:
    """The connections that can be closed, ordered by how long they have waited."""

    def __init__(self) -> None:
        self._waiting: dict[Waiting, None] = {}

    def waits(self, connection: Waiting) -> None:
        """Note that a connection begins to wait for a whole request, when it begins or after an answer."""
        self._waiting.pop(connection, None)
        self._waiting[connection] = None

    def leaves(self, connection: Waiting) -> None:
        """Note that a connection has a request, or has ended."""
        self._waiting.pop(connection, None)

    def make_room(self, newcomer: Waiting) -> bool:
        """Close the connection that has waited the longest; False if there is none but the new one."""
        longest = next((one for one in self._waiting if one is not newcomer), None)
        if longest is None:
            return False
        self.leaves(longest)
        longest.give_up_place()
        return True


def raise_file_limit() -> None:
    """Let this process have as many files as the system allows, as each connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(wanted: int) -> int:
    """How many connections the limit of open files has room for, at most ``wanted``."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))
