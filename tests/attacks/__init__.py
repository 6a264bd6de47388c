"""Attacks on a running service: each is a function that raises where the service breaks its promise.

``python tests/attacks URL [--pid N] [NAME…]`` tries them on any service that may be attacked. Each has a
bound on time, and on the memory of process ``N`` and all that it has started.
"""

from attacks import connections, load, protocol
from attacks.attack import Attack
from attacks.target import Target

__all__ = ["ALL", "Attack", "Target"]

ALL: tuple[Attack, ...] = (*protocol.ATTACKS, *connections.ATTACKS, *load.ATTACKS)
"""All attacks there are."""
