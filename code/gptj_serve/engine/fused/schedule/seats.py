"""What running sequences hold: a slot of the runner and cache blocks."""

from collections.abc import Iterator
from dataclasses import dataclass

from gptj_serve.engine.fused.schedule.blocks import BlockPool
from gptj_serve.engine.fused.schedule.plan import RunnerLimits
from gptj_serve.engine.scheduler import HeldSequence, IntegrityError


@dataclass(slots=True, eq=False)
class Seat:
    """What one sequence holds while it runs.

    Attributes:
        running: The sequence.
        slot: Its slot.
        blocks: Its cache blocks, in the order of its positions.
        token_ids: What is prefilled: the prompt, and what had been generated before a preemption.
        num_cached: Positions that the steps planned so far have cached.
    """

    sequence: HeldSequence
    slot: int
    blocks: list[int]
    token_ids: tuple[int, ...]
    num_cached: int = 0

    @property
    def is_prefilling(self) -> bool:
        """Some of `token_ids` are still to be cached."""
        return self.num_cached < len(self.token_ids)


class Seats:
    """Slots and blocks, and who holds them.

    Args:
        limits: How many there are.

    Attributes:
        num_cached: Positions cached for all sequences. Other threads read it too.
    """

    def __init__(self, limits: RunnerLimits) -> None:
        self.num_cached = 0
        self._num_slots = limits.max_batch_size
        self._pool = BlockPool(limits.num_blocks, limits.block_size)
        self._free_slots = list(range(limits.max_batch_size - 1, -1, -1))
        self._by_running: dict[HeldSequence, Seat] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._by_running)

    def __iter__(self) -> Iterator[Seat]:
        """The seats taken, oldest first; they may change meanwhile."""
        return iter(list(self._by_running.values()))

    def __contains__(self, sequence: HeldSequence) -> bool:
        return sequence in self._by_running

    @property
    def num_free_slots(self) -> int:
        """Sequences that could join, as far as slots go."""
        return len(self._free_slots)

    @property
    def youngest(self) -> Seat | None:
        """The seat taken last."""
        return next(reversed(self._by_running.values()), None)

    def take(self, sequence: HeldSequence) -> Seat | None:
        """Give a sequence a slot, and blocks for its tokens and the next one; None if there are too few.

        A block for each sequence that runs stays free: they would soon need it, and take it back.
        """
        num_known = len(sequence.request.prompt_ids) + len(sequence.generated_ids)
        num_blocks = self._pool.num_needed(num_known + 1)
        if not self._free_slots or (self and self._pool.num_free - num_blocks < len(self)):
            return None
        blocks = self._pool.allocate(num_blocks)
        if blocks is None:
            return None
        token_ids = (*sequence.request.prompt_ids, *sequence.generated_ids)
        seat = Seat(sequence, self._free_slots.pop(), blocks, token_ids)
        self._by_running[sequence] = seat
        return seat

    def advance(self, seat: Seat, num_cached: int) -> None:
        """Note that a planned step caches a sequence's positions up to this one."""
        self.num_cached += num_cached - seat.num_cached
        seat.num_cached = num_cached

    def extend(self, seat: Seat) -> bool:
        """See that a sequence's next position has a block; False if none is free."""
        if seat.num_cached == len(seat.blocks) * self._pool.block_size:
            block = self._pool.allocate(1)
            if block is None:
                return False
            seat.blocks += block
        return True

    def give_back(self, sequence: HeldSequence) -> None:
        """Free what a sequence holds."""
        seat = self._by_running.pop(sequence)
        # the list itself stays as it is: a step that runs may name it
        self._pool.release(seat.blocks)
        self._free_slots.append(seat.slot)
        self.num_cached -= seat.num_cached

    def check(self) -> None:
        """Check that every slot and block is free or held, once, and that each sequence has enough.

        Raises:
            IntegrityError: Something is wrong; says what.
        """
        self._pool.check(seat.blocks for seat in self)
        slots = (*self._free_slots, *(seat.slot for seat in self))
        if sorted(slots) != list(range(self._num_slots)):
            raise IntegrityError(f"slots {sorted(slots)} are free or held; each once is right")
        for seat in self:
            if seat.num_cached > len(seat.blocks) * self._pool.block_size:
                raise IntegrityError(f"{seat.num_cached} positions are cached in {len(seat.blocks)} blocks")
        if self.num_cached != sum(seat.num_cached for seat in self):
            raise IntegrityError(f"{self.num_cached} positions are said to be cached; the sequences differ")
        if any(seat.is_prefilling for seat in list(self)[:-1]):
            raise IntegrityError("a sequence has joined before an older one was prefilled")
