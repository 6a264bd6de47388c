"""What an attack is, and how it is put on its module's list."""

from collections.abc import Callable
from dataclasses import dataclass

from attacks.target import Target

Run = Callable[[Target], None]
BOTH = ("http", "mms")


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        run: Tries it. Raises `AssertionError` where the service does not do as it promises.
        fronts: Those that promise to hold.
        is_cheap: Takes a second or so; else up to a minute.
    """

    run: Run
    fronts: tuple[str, ...]
    is_cheap: bool

    @property
    def name(self) -> str:
        """The function's."""
        return self.run.__name__


def attack(
    attacks: list[Attack], fronts: tuple[str, ...] = ("http",), is_cheap: bool = True
) -> Callable[[Run], Run]:
    """Put a function on a module's list.

    Args:
        attacks: The list.
        fronts: See `Attack`.
        is_cheap: See `Attack`.
    """

    def add(run: Run) -> Run:
        attacks.append(Attack(run, fronts, is_cheap))
        return run

    return add
