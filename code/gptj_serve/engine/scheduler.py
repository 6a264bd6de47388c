"""Decides what the backend runs next. Sans-I/O: no torch, no clock, no sockets; time is passed in.

Static batching: requests that wait together run together; a sequence that ends leaves at once, its
row stays empty; the next batch starts when the last sequence has ended. Sequences whose seed the
client chose share a batch with those of their own call only. Every sequence that `add` accepted gets
exactly one `Ended`.
"""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptj_serve.errors import BadRequest, DeadlinePassed, Overloaded, ServingError, Unavailable
from gptj_serve.request import GenerationRequest, Timings

Key = tuple[int, str]
"""A connection's number and the request's id on it: ids of different fronts cannot collide."""


@dataclass(slots=True, eq=False)
class Running:
    """One sequence that the scheduler holds, waiting or running. Times are in seconds of one clock.

    ``call`` is the same number for all sequences that were added together.
    """

    key: Key
    request: GenerationRequest
    call: int
    arrived_s: float
    started_s: float | None = None
    first_token_s: float | None = None
    generated_ids: list[int] = field(default_factory=list)

    @property
    def deadline_s(self) -> float:
        """When the sequence's time is over."""
        timeout_s = self.request.timeout_s
        return float("inf") if timeout_s is None else self.arrived_s + timeout_s

    def timings(self, now_s: float) -> Timings | None:
        """Where the time went, or None if the sequence never started."""
        if self.started_s is None:
            return None
        first_s = now_s if self.first_token_s is None else self.first_token_s
        return Timings(self.started_s - self.arrived_s, first_s - self.arrived_s, now_s - self.arrived_s)


@dataclass(slots=True)
class Counters:
    """What the scheduler has done since it was made; sequences, but for the tokens."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Prefill:
    """Start a batch with these rows."""

    rows: tuple[Running, ...]


@dataclass(frozen=True, slots=True)
class Decode:
    """Append one token to every row of the running batch; None marks a row whose sequence has ended."""

    rows: tuple[Running | None, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to run before ``until_s``; None means until something is added."""

    until_s: float | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler chose for one row: a token, or why there is none."""

    token_id: int = 0
    logprob: float | None = None
    error: ServingError | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """A token to report."""

    key: Key
    token_id: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """The one terminal event of a sequence; reasons are those of `gptj_serve.request.EndEvent`."""

    key: Key
    reason: str
    error: ServingError | None
    timings: Timings | None


Step = Prefill | Decode
Event = Token | Ended


class StaticScheduler:
    """Static batching over one backend.

    Args:
        max_batch_size: Rows in a batch at most.
        max_context: Columns of a batch at most (longest prompt plus most new tokens).
        vocab_size: Token ids must be below this.
        max_queue: Sequences that may wait.
        batch_wait_s: When a batch of several has ended, how long the next one waits for company;
            the others' next requests are on their way, and the first to come back would run alone.
    """

    def __init__(
        self, *, max_batch_size: int, max_context: int, vocab_size: int, max_queue: int, batch_wait_s: float
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._max_queue = max_queue
        self._batch_wait_s = batch_wait_s
        self._waiting: deque[Running] = deque()
        self._calls = itertools.count()
        self._rows: list[Running | None] = []
        self._longest_prompt = 0
        self._company_until_s = float("-inf")
        self._closed = False
        self.counters = Counters()

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a batch."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences in the running batch that have not ended."""
        return sum(row is not None for row in self._rows)

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._waiting and not self.num_running

    @property
    def cache_capacity_tokens(self) -> int:
        """Columns times rows of the largest batch."""
        return self._max_batch_size * self._max_context

    @property
    def num_cache_tokens(self) -> int:
        """Columns times rows of the running batch, padding included."""
        rows, longest_prompt = self._rows, self._longest_prompt
        # all rows move together; the columns of a row that has ended stay
        num_new = max((len(row.generated_ids) for row in rows if row is not None), default=None)
        return 0 if num_new is None else len(rows) * (longest_prompt + num_new)

    def held_keys(self) -> list[Key]:
        """The keys of all sequences held."""
        return [running.key for running in self._held()]

    def close(self) -> None:
        """Accept nothing more; what was accepted goes on."""
        self._closed = True

    def add(self, group: Sequence[tuple[Key, GenerationRequest]], now_s: float) -> None:
        """Accept all sequences of one call, or none.

        Raises:
            BadRequest: A sequence can never run here.
            Overloaded: The queue has no room for all of them.
            Unavailable: The engine is shutting down.
        """
        if self._closed:
            raise Unavailable("the server is shutting down")
        for _, request in group:
            self._check(request)
        if len(group) > self._room():
            raise Overloaded(
                f"the queue is full: {len(self._waiting)} of {self._max_queue} sequences wait, "
                f"{len(group)} more do not fit; try again later",
                retry_after_s=1,
            )
        call = next(self._calls)
        self._waiting.extend(Running(key, request, call, now_s) for key, request in group)

    def _room(self) -> int:
        """How many sequences may be added now; those that can start at once need no queue."""
        can_start = 0 if self.num_running else self._max_batch_size
        return max(0, self._max_queue + can_start - len(self._waiting))

    def _check(self, request: GenerationRequest) -> None:
        if not request.prompt_ids:
            raise BadRequest("the prompt has no tokens; at least 1 is needed")
        if not all(0 <= token_id < self._vocab_size for token_id in request.prompt_ids):
            raise BadRequest(f"the prompt has a token id outside 0 to {self._vocab_size - 1}")
        if request.sampling.max_new_tokens < 1:
            raise BadRequest("max_new_tokens must be at least 1")
        if request.num_tokens_needed > self._max_context:
            raise BadRequest(
                f"{len(request.prompt_ids)} prompt tokens + {request.sampling.max_new_tokens} new tokens "
                f"are more than the context of {self._max_context} tokens"
            )

    def abort(self, key: Key, now_s: float) -> list[Event]:
        """Cancel one sequence; unknown keys (it may just have ended) are ignored."""
        for running in self._held():
            if running.key == key:
                return [self._end(running, "cancelled", None, now_s)]
        return []

    def abort_all(self, error: ServingError, now_s: float) -> list[Event]:
        """Fail everything that waits or runs."""
        return [self._end(running, "failed", error, now_s) for running in self._held()]

    def expire(self, now_s: float) -> list[Event]:
        """Fail every sequence whose deadline has passed."""
        return [
            self._end(running, "failed", _deadline_error(running), now_s)
            for running in self._held()
            if running.deadline_s <= now_s
        ]

    def schedule(self, now_s: float) -> Step | Wait:
        """The next step to run. Every step must be answered by `commit` or `fail`."""
        if self.num_running:
            return Decode(tuple(self._rows))
        self._rows = []
        if not self._waiting:
            return Wait(None)
        alone = self._waiting[0].request.reproducible
        if now_s < self._company_until_s and len(self._waiting) < self._max_batch_size and not alone:
            return Wait(self._company_until_s)
        batch = self._take_batch()
        for running in batch:
            running.started_s = now_s
            self.counters.prompt_tokens += len(running.request.prompt_ids)
        self._longest_prompt = max(len(running.request.prompt_ids) for running in batch)
        self._rows = list(batch)
        return Prefill(tuple(batch))

    def _take_batch(self) -> list[Running]:
        """The oldest waiting sequence and, in order, all that may and do fit beside it in the padded batch.

        Rows are padded to the longest prompt, so the batch needs the longest prompt plus the most
        new tokens of any row. A sequence that does not fit keeps its place; it is first next time.
        """
        batch: list[Running] = []
        longest = most_new = 0
        for running in self._waiting:
            if len(batch) == self._max_batch_size:
                break
            if batch and not _may_share(batch[0], running):
                continue
            prompt = max(longest, len(running.request.prompt_ids))
            new = max(most_new, running.request.sampling.max_new_tokens)
            if prompt + new <= self._max_context:
                longest, most_new = prompt, new
                batch.append(running)
        taken = set(map(id, batch))
        self._waiting = deque(running for running in self._waiting if id(running) not in taken)
        return batch

    def commit(self, step: Step, sampled: Sequence[Sampled | None], now_s: float) -> list[Event]:
        """Book the tokens of a step.

        Args:
            step: What `schedule` returned.
            sampled: One entry a row; entries of rows that had ended are ignored.
            now_s: The time at which the tokens were known.
        """
        events: list[Event] = []
        for running, choice in zip(step.rows, sampled, strict=True):
            # a row may have been aborted while the step ran
            if running is None or choice is None or running not in self._rows:
                continue
            if choice.error is not None:
                events.append(self._end(running, "failed", choice.error, now_s))
                continue
            events.extend(self._book(running, choice, now_s))
        return events

    def _book(self, running: Running, choice: Sampled, now_s: float) -> list[Event]:
        if running.first_token_s is None:
            running.first_token_s = now_s
        running.generated_ids.append(choice.token_id)
        self.counters.generated_tokens += 1
        token = Token(running.key, choice.token_id, choice.logprob, choice.top_logprobs)
        if choice.token_id in running.request.eos_token_ids:
            return [token, self._end(running, "eos_token", None, now_s)]
        if len(running.generated_ids) >= running.request.sampling.max_new_tokens:
            return [token, self._end(running, "length", None, now_s)]
        return [token]

    def fail(self, step: Step, error: ServingError, now_s: float) -> list[Event]:
        """The step raised: fail every sequence of the batch; what waits is not touched."""
        live = [running for running in step.rows if running is not None and running in self._rows]
        return [self._end(running, "failed", error, now_s) for running in live]

    def _held(self) -> list[Running]:
        return [*self._waiting, *(row for row in self._rows if row is not None)]

    def _end(self, running: Running, reason: str, error: ServingError | None, now_s: float) -> Ended:
        if running in self._waiting:
            self._waiting.remove(running)
        else:
            self._rows[self._rows.index(running)] = None
            if not self.num_running and (len(self._rows) > 1 or self._waiting):
                self._company_until_s = now_s + self._batch_wait_s
        self._count_end(reason)
        return Ended(running.key, reason, error, running.timings(now_s))

    def _count_end(self, reason: str) -> None:
        if reason == "cancelled":
            self.counters.cancelled += 1
        elif reason == "failed":
            self.counters.failed += 1
        else:
            self.counters.finished += 1


def _may_share(first: Running, other: Running) -> bool:
    apart = first.request.reproducible or other.request.reproducible
    return first.call == other.call or not apart


def _deadline_error(running: Running) -> ServingError:
    return DeadlinePassed(
        f"no answer within {running.request.timeout_s:.1f} s "
        f"({len(running.generated_ids)} of {running.request.sampling.max_new_tokens} tokens generated)"
    )
