"""The free list of cache blocks. No torch: a block is a number here."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

from gptj_serve.engine.scheduler import IntegrityError


class BlockPool:
    """Hands out block ids 0..num_blocks-1, those given back last first.

    Args:
        num_blocks: How many there are.
        block_size: Positions in one block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_free = [True] * num_blocks

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def num_needed(self, num_positions: int) -> int:
        """Blocks that hold so many positions of one sequence."""
        return -(-num_positions // self.block_size)

    def allocate(self, num_blocks: int) -> list[int] | None:
        """Take so many blocks, or None, and none taken, if fewer are free."""
        if num_blocks > len(self._free):
            return None
        taken = [self._free.pop() for _ in range(num_blocks)]
        for block in taken:
            self._is_free[block] = False
        return taken

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            IntegrityError: One of them is free already.
        """
        for block in blocks:
            if self._is_free[block]:
                raise IntegrityError(f"block {block} is released twice")
            self._is_free[block] = True
            self._free.append(block)

    def check(self, held: Iterable[Sequence[int]]) -> None:
        """Check that every block is free or held, once.

        Args:
            held: The blocks of each holder.

        Raises:
            IntegrityError: One is not; says which.
        """
        num_holders = Counter(chain(self._free, *held))
        for block in range(self.num_blocks):
            if num_holders[block] != 1:
                raise IntegrityError(
                    f"block {block} is free or held {num_holders[block]} times; once is right"
                )
