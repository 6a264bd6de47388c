"""Static batching: decides what a backend runs next.

Requests that wait together run together. A sequence that ends leaves at once, and its row stays empty; the
next batch starts when the last sequence has ended. Sequences whose seed the client chose only share a batch
with those of their own call.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gptj_serve.engine.scheduler import HeldSequence, Sampled, Scheduler, Wait
from gptj_serve.errors import ServingError
from gptj_serve.request import Event


@dataclass(frozen=True, slots=True)
class StaticStep:
    """What one step of a static batch computes.

    Attributes:
        rows: The batch's sequences; None marks a row whose sequence has ended.
    """

    rows: tuple[HeldSequence | None, ...]

    @property
    def calls(self) -> set[int]:
        """The calls whose sequences have a part in it."""
        return {row.call for row in self.rows if row is not None}


@dataclass(frozen=True, slots=True)
class Prefill(StaticStep):
    """Start a batch with these rows."""

    rows: tuple[HeldSequence, ...]


@dataclass(frozen=True, slots=True)
class Decode(StaticStep):
    """Append one token to every row of the running batch."""


class StaticScheduler(Scheduler[StaticStep]):
    """Static batching over one backend.

    Args:
        max_batch_size: Rows in a batch at most.
        max_context: Columns of a batch at most (longest prompt plus most new tokens).
        vocab_size: Token ids must be below this.
        max_queue: Sequences that may wait.
        batch_wait_s: When a batch of several has ended, how many seconds the next one waits for more
            requests: the other clients' next requests are on their way, and the first to come would run
            alone.
    """

    def __init__(
        self, *, max_batch_size: int, max_context: int, vocab_size: int, max_queue: int, batch_wait_s: float
    ) -> None:
        super().__init__(
            max_batch_size=max_batch_size, max_context=max_context, vocab_size=vocab_size, max_queue=max_queue
        )
        self._batch_wait_s = batch_wait_s
        self._rows: list[HeldSequence | None] = []
        self._longest_prompt = 0
        self._company_until_s = float("-inf")

    @property
    def num_running(self) -> int:
        """How many sequences of the running batch have not ended."""
        return sum(row is not None for row in self._rows)

    @property
    def cache_capacity_tokens(self) -> int:
        """How many tokens the largest batch holds: columns times rows."""
        return self._max_batch_size * self._max_context

    @property
    def num_cache_tokens(self) -> int:
        """How many tokens the running batch holds with padding: columns times rows."""
        rows, longest_prompt = self._rows, self._longest_prompt
        # all rows move together, and the columns of a row that has ended stay
        num_new = max((len(row.generated_ids) for row in rows if row is not None), default=None)
        return 0 if num_new is None else len(rows) * (longest_prompt + num_new)

    def _running(self) -> list[HeldSequence]:
        return [row for row in self._rows if row is not None]

    def _num_can_start(self) -> int:
        return 0 if self.num_running else self._max_batch_size

    def _leave(self, sequence: HeldSequence, now_s: float) -> None:
        self._rows[self._rows.index(sequence)] = None
        if not self.num_running and (len(self._rows) > 1 or self._waiting):
            self._company_until_s = now_s + self._batch_wait_s

    def schedule(self, now_s: float) -> StaticStep | Wait:
        """See `gptj_serve.engine.scheduler.Scheduler.schedule`."""
        if self.num_running:
            return Decode(tuple(self._rows))
        self._rows = []
        if not self._waiting:
            return Wait(None)
        alone = self._waiting[0].request.reproducible
        if now_s < self._company_until_s and len(self._waiting) < self._max_batch_size and not alone:
            return Wait(self._company_until_s)
        batch = self._take_batch()
        for sequence in batch:
            self._start(sequence, now_s)
        self._longest_prompt = max(len(sequence.request.prompt_ids) for sequence in batch)
        self._rows = list(batch)
        return Prefill(tuple(batch))

    def _take_batch(self) -> list[HeldSequence]:
        """The oldest waiting sequence and, in order, all that may share its padded batch and fit into it.

        Rows are padded to the longest prompt, so the batch needs the longest prompt plus the most
        new tokens of any row. A sequence that does not fit keeps its place; it is first next time.
        """
        batch: list[HeldSequence] = []
        longest = most_new = 0
        for sequence in self._waiting:
            if len(batch) == self._max_batch_size:
                break
            if batch and not _may_share(batch[0], sequence):
                continue
            prompt = max(longest, len(sequence.request.prompt_ids))
            new = max(most_new, sequence.request.sampling.max_new_tokens)
            if prompt + new <= self._max_context:
                longest, most_new = prompt, new
                batch.append(sequence)
        taken = set(map(id, batch))
        self._waiting = deque(sequence for sequence in self._waiting if id(sequence) not in taken)
        return batch

    def commit(self, step: StaticStep, sampled: Sequence[Sequence[Sampled]], now_s: float) -> list[Event]:
        """See `gptj_serve.engine.scheduler.Scheduler.commit`; every row of the step has tokens or none."""
        events: list[Event] = []
        for sequence, tokens in zip(step.rows, sampled, strict=True):
            for token in tokens:
                # a row may have been aborted while the step ran
                if sequence is not None and sequence in self._rows:
                    events.extend(self._book(sequence, token, now_s))
        return events

    def fail(self, step: StaticStep, error: ServingError, now_s: float) -> list[Event]:
        """Fail every sequence of the batch, as the step raised; waiting sequences are not touched."""
        live = [sequence for sequence in step.rows if sequence is not None and sequence in self._rows]
        return [self._end(sequence, "failed", error, now_s) for sequence in live]


def _may_share(first: HeldSequence, other: HeldSequence) -> bool:
    apart = first.request.reproducible or other.request.reproducible
    return first.call == other.call or not apart
