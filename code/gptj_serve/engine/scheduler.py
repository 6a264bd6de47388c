"""What all schedulers share: the sequences they hold, the queue, and the one end that each sequence gets.

There is no I/O here, no torch, no clock and no sockets; time is passed in. What runs next is decided by
`gptj_serve.engine.static.scheduler` and `gptj_serve.engine.fused.schedule.scheduler`.
"""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gptj_serve.errors import BadRequest, DeadlinePassed, Overloaded, ServingError, Unavailable
from gptj_serve.request import EndEvent, Event, GenerationRequest, Timings, TokenEvent

Key = tuple[int, str]
"""A connection's number and the request's id on it, so that ids of different fronts cannot collide."""


@dataclass(slots=True, eq=False)
class HeldSequence:
    """A sequence that the scheduler holds, waiting or running. Times are in seconds of one clock.

    ``number`` is the sequence's own, ``call`` is the same for all sequences that were added together, and
    ``turn`` is the round in which this one may start.
    """

    key: Key
    request: GenerationRequest
    call: int
    arrived_s: float
    number: int = 0
    turn: int = 0
    started_s: float | None = None
    first_token_s: float | None = None
    generated_ids: list[int] = field(default_factory=list)

    @property
    def deadline_s(self) -> float:
        """When the sequence's time is over."""
        timeout_s = self.request.timeout_s
        return float("inf") if timeout_s is None else self.arrived_s + timeout_s

    def timings(self, now_s: float) -> Timings | None:
        """Where the time went; None if the sequence never started."""
        if self.started_s is None:
            return None
        first_s = now_s if self.first_token_s is None else self.first_token_s
        return Timings(self.started_s - self.arrived_s, first_s - self.arrived_s, now_s - self.arrived_s)


@dataclass(slots=True)
class Counters:
    """What the scheduler has done since it was made, counted in sequences, except for the tokens.

    ``preempted`` counts a sequence each time that it has to make room for an older one. ``served`` counts
    those that finished, or ran until they were cancelled (by a stop string, say): signs of a sound engine.
    """

    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    preempted: int = 0
    served: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """There is nothing to run before ``until_s``; None means until something is added."""

    until_s: float | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler chose for a row: a token, or the reason why there is none."""

    token_id: int = 0
    logprob: float | None = None
    error: ServingError | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a loaded model can hold, however it batches.

    Attributes:
        max_batch_size: How many sequences run together at most.
        max_context: How many positions a sequence has at most, prompt plus new tokens. In a static batch
            these are columns: the longest prompt (shorter ones are padded on the left) plus what follows.
        vocab_size: Width of the logits.
    """

    max_batch_size: int
    max_context: int
    vocab_size: int


class IntegrityError(Exception):
    """The books do not add up, which is always a bug: a block has leaked, is held twice, or is missing."""


class Step(Protocol):
    """What a step computes."""

    @property
    def calls(self) -> set[int]:
        """The calls whose sequences have a part in the step."""
        ...


StepT = TypeVar("StepT", bound=Step)


class Scheduler(ABC, Generic[StepT]):
    """Takes sequences in and ends them; a subclass decides what runs.

    Every sequence that `add` accepted gets exactly one `EndEvent`.

    Calls take turns: in each round every waiting call starts one sequence, and a new call joins in the next
    round. So a call for one sequence waits for one sequence of each call before it, not for all of them, and
    a call for many goes on however many others come.

    Args:
        max_batch_size: How many sequences run together at most.
        max_context: How many prompt and new tokens a sequence has at most.
        vocab_size: Token ids must be below this.
        max_queue: How many sequences may wait.
    """

    def __init__(self, *, max_batch_size: int, max_context: int, vocab_size: int, max_queue: int) -> None:
        self._max_batch_size = max_batch_size
        self._max_context = max_context
        self._vocab_size = vocab_size
        self._max_queue = max_queue
        self._waiting: deque[HeldSequence] = deque()
        self._calls = itertools.count()
        self._numbers = itertools.count()
        self._turn = 0  # this is of the last sequence that started
        self._closed = False
        self.counters = Counters()

    @property
    def num_waiting(self) -> int:
        """How many sequences wait for their turn."""
        return len(self._waiting)

    @property
    @abstractmethod
    def num_running(self) -> int:
        """How many sequences run and have not ended."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self.num_running

    @property
    @abstractmethod
    def cache_capacity_tokens(self) -> int:
        """How many tokens the cache can hold."""

    @property
    @abstractmethod
    def num_cache_tokens(self) -> int:
        """How many tokens the cache holds now, with padding; other threads read this, too."""

    @abstractmethod
    def schedule(self, now_s: float) -> StepT | Wait:
        """The next step to run; every step must be answered by `commit` or `fail`, in order."""

    @abstractmethod
    def commit(self, step: StepT, sampled: Sequence[Sequence[Sampled]], now_s: float) -> list[Event]:
        """Book the tokens of a step.

        Args:
            step: What `schedule` returned.
            sampled: The tokens of each row that chooses some; those of sequences that ended are ignored.
            now_s: The time at which the tokens were known.
        """

    @abstractmethod
    def fail(self, step: StepT, error: ServingError, now_s: float) -> list[Event]:
        """Fail all sequences of a step that raised, as far as they are still held; no others are touched."""

    @abstractmethod
    def _running(self) -> list[HeldSequence]:
        """The sequences that run, oldest first."""

    @abstractmethod
    def _num_can_start(self) -> int:
        """How many sequences could start at once if none waited."""

    @abstractmethod
    def _leave(self, sequence: HeldSequence, now_s: float) -> None:
        """Release what a running sequence holds."""

    def check(self) -> None:
        """Check that the books add up.

        Raises:
            IntegrityError: They do not; the message says what is wrong.
        """
        held = self._held()
        if len(set(held)) < len(held):
            raise IntegrityError("a sequence is held twice")

    def held_keys(self) -> list[Key]:
        """The keys of all sequences held."""
        return [sequence.key for sequence in self._held()]

    def close(self) -> None:
        """Accept nothing more; what was accepted before goes on."""
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
                f"the queue is full: {self.num_running} sequences run and {len(self._waiting)} wait, "
                f"{len(group)} more do not fit (GPTJ_MAX_QUEUE={self._max_queue}); try again later",
                retry_after_s=1,
            )
        call = next(self._calls)
        # nobody overtakes the first in the queue, since what it needs may be about to be free
        head = next((waiting.turn for waiting in self._waiting if waiting.started_s is None), 0)
        turns = itertools.count(max(self._turn + 1, head))
        self._queue(
            HeldSequence(key, request, call, now_s, next(self._numbers), next(turns))
            for key, request in group
        )

    def _room(self) -> int:
        """How many sequences may be added now; those that can start at once need no queue."""
        return max(0, self._max_queue + self._num_can_start() - len(self._waiting))

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
        for sequence in self._held():
            if sequence.key == key:
                return [self._end(sequence, "cancelled", None, now_s)]
        return []

    def abort_all(self, error: ServingError, now_s: float) -> list[Event]:
        """Fail everything that waits or runs."""
        return [self._end(sequence, "failed", error, now_s) for sequence in self._held()]

    def expire(self, now_s: float) -> list[Event]:
        """Fail every sequence whose deadline has passed."""
        return [
            self._end(sequence, "failed", _deadline_error(sequence), now_s)
            for sequence in self._held()
            if sequence.deadline_s <= now_s
        ]

    def _queue(self, more: Iterable[HeldSequence]) -> None:
        """Put sequences into the queue, behind those of the same turn."""
        self._waiting = deque(sorted((*self._waiting, *more), key=lambda waiting: waiting.turn))

    def _start(self, sequence: HeldSequence, now_s: float) -> None:
        """Note that a sequence starts, which is not for the first time if it was preempted."""
        self._turn = max(self._turn, sequence.turn)
        if sequence.started_s is None:
            sequence.started_s = now_s
            self.counters.prompt_tokens += len(sequence.request.prompt_ids)

    def _book(self, sequence: HeldSequence, choice: Sampled, now_s: float) -> list[Event]:
        """Book what was chosen for a held sequence."""
        if choice.error is not None:
            return [self._end(sequence, "failed", choice.error, now_s)]
        if sequence.first_token_s is None:
            sequence.first_token_s = now_s
        sequence.generated_ids.append(choice.token_id)
        self.counters.generated_tokens += 1
        connection, request_id = sequence.key
        token = TokenEvent(request_id, choice.token_id, choice.logprob, choice.top_logprobs, connection)
        if choice.token_id in sequence.request.eos_token_ids:
            return [token, self._end(sequence, "eos_token", None, now_s)]
        if len(sequence.generated_ids) >= sequence.request.sampling.max_new_tokens:
            return [token, self._end(sequence, "length", None, now_s)]
        return [token]

    def _held(self) -> list[HeldSequence]:
        return [*self._waiting, *self._running()]

    def _end(self, sequence: HeldSequence, reason: str, error: ServingError | None, now_s: float) -> EndEvent:
        if sequence in self._waiting:
            self._waiting.remove(sequence)
        else:
            self._leave(sequence, now_s)
        self._count_end(reason)
        self.counters.served += reason != "failed" and sequence.started_s is not None
        connection, request_id = sequence.key
        return EndEvent(request_id, reason, error, sequence.timings(now_s), connection)

    def _count_end(self, reason: str) -> None:
        if reason == "cancelled":
            self.counters.cancelled += 1
        elif reason == "failed":
            self.counters.failed += 1
        else:
            self.counters.finished += 1


def _deadline_error(sequence: HeldSequence) -> ServingError:
    return DeadlinePassed(
        f"no answer within {sequence.request.timeout_s:.1f} s "
        f"({len(sequence.generated_ids)} of {sequence.request.sampling.max_new_tokens} tokens generated)"
    )
