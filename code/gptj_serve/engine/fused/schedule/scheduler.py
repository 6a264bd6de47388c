"""Continuous batching: sequences join and leave at every step. Sans-I/O, as `gptj_serve.engine.scheduler`.

A step is planned while the one before it runs, so nothing here waits for a token: a sequence is known by
how many of its positions the steps planned so far have cached and by how many tokens they choose. That a
token ended a sequence is known one step late; what the next step chooses for it is ignored. The device
works in the order of the steps, so a sequence's blocks and slot can be given away while a step still uses
them.

Progress: sequences start in the order of their turns, the youngest makes room for the others (and, where one
call holds many slots, the youngest of that call for a call that has none), and a sequence alone always fits.
So the oldest goes on until it ends, and then another one is the oldest.
"""

from collections import Counter
from collections.abc import Sequence

from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row, RunnerLimits
from gptj_serve.engine.fused.schedule.seats import Seat, Seats
from gptj_serve.engine.scheduler import HeldSequence, IntegrityError, Sampled, Scheduler, Wait
from gptj_serve.errors import BadRequest, ServingError
from gptj_serve.request import EndEvent, Event, GenerationRequest

MANY_PREFILLS = 3
"""When more prompts than that could start, those that decode wait for them."""

LARGE_BATCH = 24
"""From this many sequences on, steps are slow anyway, so two prompt chunks fit into one."""

PATIENCE_S = 1.0
"""A call of which nothing runs, and which is next, waits no longer for a call that holds several slots."""
MAKE_WAY_S = 0.25
"""Between two sequences that have to make room for others' turns: each costs the computing of its prompt."""


class ContinuousScheduler(Scheduler[ContinuousStep]):
    """Continuous batching over one `gptj_serve.engine.fused.schedule.plan.ContinuousRunner`.

    Args:
        limits: The runner's.
        max_queue: Sequences that may wait, beyond those that find a free slot.

    Raises:
        ValueError: The limits leave no room for any step.
    """

    def __init__(self, limits: RunnerLimits, *, max_queue: int) -> None:
        if not 1 <= limits.prefill_chunk <= limits.max_prefill:
            raise ValueError(f"prefill_chunk is {limits.prefill_chunk}; 1 to {limits.max_prefill} is right")
        super().__init__(
            max_batch_size=limits.max_batch_size,
            max_context=limits.max_context,
            vocab_size=limits.vocab_size,
            max_queue=max_queue,
        )
        self._limits = limits
        self._seats = Seats(limits)
        # tokens that planned steps choose and that are not known yet, of all that have started
        self._num_pending: dict[HeldSequence, int] = {}
        self._started: dict[int, HeldSequence] = {}
        self._made_way_s = float("-inf")

    @property
    def num_running(self) -> int:
        """Sequences that hold a slot and blocks."""
        return len(self._seats)

    @property
    def cache_capacity_tokens(self) -> int:
        """Positions in all blocks."""
        return self._limits.num_blocks * self._limits.block_size

    @property
    def num_cache_tokens(self) -> int:
        """Positions that the steps planned so far have cached for the sequences that run."""
        return self._seats.num_cached

    def schedule(self, now_s: float) -> ContinuousStep | Wait:
        """Plan the next step; the one before may still run.

        Every step must be answered by `commit` or `fail`, in order. `Wait` means that nothing can be
        planned before something is added or a step is answered.
        """
        self._make_way(now_s)
        decodes = self._plan_decodes()
        prefills = self._plan_prefills(len(decodes), now_s)
        if not (prefills or decodes):
            return Wait(None)
        return ContinuousStep(tuple(prefills), tuple(decodes))

    def commit(self, step: ContinuousStep, sampled: Sequence[Sequence[Sampled]], now_s: float) -> list[Event]:
        """Book the tokens of a step.

        Args:
            step: What `schedule` returned.
            sampled: The tokens of each of its `sampled_rows`; those after a sequence's end are ignored.
            now_s: The time at which the tokens were known.
        """
        events: list[Event] = []
        for row, tokens in zip(step.sampled_rows, sampled, strict=True):
            if (sequence := self._started.get(row.sequence)) is None:
                continue
            self._num_pending[sequence] -= 1
            for token in tokens:
                if row.sequence in self._started:
                    events.extend(self._book(sequence, token, now_s))
        return events

    def fail(self, step: ContinuousStep, error: ServingError, now_s: float) -> list[Event]:
        """The step raised: fail its sequences, also those that were preempted since."""
        rows = (*step.prefills, *step.decodes)
        lost = [self._started[row.sequence] for row in rows if row.sequence in self._started]
        return [self._end(sequence, "failed", error, now_s) for sequence in lost]

    def check(self) -> None:
        """Check that the books add up. Takes microseconds a sequence.

        Raises:
            IntegrityError: They do not; says what is wrong.
        """
        super().check()
        self._seats.check()
        started = set(self._num_pending)
        if not set(self._running()) <= started <= set(self._held()):
            raise IntegrityError("tokens are awaited for a sequence that is not held")

    def _plan_decodes(self) -> list[Row]:
        rows: list[Row] = []
        for seat in self._seats:
            # preempted for an older one; whoever follows is younger still
            if seat.sequence not in self._seats:
                break
            if not seat.is_prefilling and self._wants_token(seat.sequence) and self._make_room(seat):
                rows.append(self._plan(seat, None, samples=True))
        return rows

    def _plan_prefills(self, num_decodes: int, now_s: float) -> list[Row]:
        budget = self._prefill_budget(num_decodes)
        rows: list[Row] = []
        while budget > 0 and (seat := self._next_prefill(now_s, is_shared=bool(rows))):
            token_ids = self._chunk(seat, budget)
            budget -= len(token_ids)
            samples = seat.num_cached + len(token_ids) == len(seat.token_ids)
            rows.append(self._plan(seat, token_ids, samples))
            if seat.sequence.request.reproducible:
                break
        return rows

    def _plan(self, seat: Seat, token_ids: tuple[int, ...] | None, samples: bool) -> Row:
        sequence = seat.sequence
        row = Row(
            sequence=sequence.number,
            call=sequence.call,
            request=sequence.request,
            slot=seat.slot,
            blocks=seat.blocks,
            start=seat.num_cached,
            token_ids=token_ids,
            samples=samples,
        )
        self._seats.advance(seat, row.end)
        self._num_pending[sequence] += samples
        return row

    def _prefill_budget(self, num_decodes: int) -> int:
        """Prompt tokens in this step at most.

        Those that decode wait for the whole step; but when those that could start are more, or simply many,
        it serves more to let these start. Those that decode take part in the step's products, which are
        fastest when their size is a round number.
        """
        num_prefills = (self._unfinished() is not None) + min(len(self._waiting), self._seats.num_free_slots)
        budget = self._limits.max_prefill
        if num_prefills <= min(num_decodes, MANY_PREFILLS):
            chunks = 2 if num_decodes >= LARGE_BATCH else 1
            budget = min(chunks * self._limits.prefill_chunk, budget)
        return max(budget - num_decodes, budget // 2)

    def _next_prefill(self, now_s: float, *, is_shared: bool) -> Seat | None:
        """Whose prompt goes on or starts; never past the oldest that cannot."""
        if seat := self._unfinished():
            return seat
        if not self._waiting or (is_shared and self._waiting[0].request.reproducible):
            return None
        return self._admit(self._waiting[0], now_s)

    def _unfinished(self) -> Seat | None:
        """The one sequence whose prompt has begun and goes on: nobody joins after it meanwhile."""
        seat = self._seats.youngest
        return seat if seat and seat.is_prefilling else None

    def _admit(self, sequence: HeldSequence, now_s: float) -> Seat | None:
        """Let the first of the queue join if there is room."""
        # a preempted sequence's last tokens may be on their way
        seat = None if self._num_pending.get(sequence) else self._seats.take(sequence)
        if seat:
            self._waiting.popleft()
            self._num_pending[sequence] = 0
            self._started[sequence.number] = sequence
            self._start(sequence, now_s)
        return seat

    def _chunk(self, seat: Seat, budget: int) -> tuple[int, ...]:
        """The tokens prefilled next.

        With a seed chosen by the client the borders are always the same ones, the prompt's end among
        them: a prompt that is computed again after a preemption is computed as it was the first time.
        """
        start, end = seat.num_cached, len(seat.token_ids)
        request = seat.sequence.request
        if request.reproducible:
            budget = self._limits.prefill_chunk
            end = len(request.prompt_ids) if start < len(request.prompt_ids) else end
        return seat.token_ids[start : min(end, start + budget)]

    def _make_room(self, seat: Seat) -> bool:
        """See that the next position has a block; False if this sequence had to give up its own."""
        while not self._seats.extend(seat):
            self._preempt_youngest()
            if seat.sequence not in self._seats:
                return False
        return True

    def _preempt_youngest(self) -> None:
        """Send it back to the front of the queue; its tokens stay, its cache is computed again."""
        sequence = self._running()[-1]
        self._seats.give_back(sequence)
        self._waiting.appendleft(sequence)
        self.counters.preempted += 1

    def _make_way(self, now_s: float) -> None:
        """Let the first of the queue have a slot of the call that holds most, if it has waited long enough.

        Each call keeps the oldest of its sequences, so the oldest of all goes on. Those with a seed chosen by
        the client go on too: they would be computed in other steps than they are alone.
        """
        head = self._waiting[0] if self._waiting else None
        if head is None or head.started_s is not None or self._seats.num_free_slots or self._unfinished():
            return
        if now_s < max(head.arrived_s + PATIENCE_S, self._made_way_s + MAKE_WAY_S):
            return
        calls = Counter(sequence.call for sequence in self._running())
        call, number = calls.most_common(1)[0]
        if head.call in calls or number < 2:
            return
        of_call = [sequence for sequence in self._running() if sequence.call == call][1:]
        may_go = [one for one in of_call if not one.request.reproducible and self._wants_token(one)]
        if may_go:
            youngest = may_go[-1]
            self._seats.give_back(youngest)
            youngest.turn = self._turn + 1
            self._queue([youngest])
            self._made_way_s = now_s
            self.counters.preempted += 1

    def _wants_token(self, sequence: HeldSequence) -> bool:
        num_asked = len(sequence.generated_ids) + self._num_pending[sequence]
        return num_asked < sequence.request.sampling.max_new_tokens

    def _running(self) -> list[HeldSequence]:
        return [seat.sequence for seat in self._seats]

    def _num_can_start(self) -> int:
        return self._seats.num_free_slots

    def _leave(self, sequence: HeldSequence, now_s: float) -> None:
        self._seats.give_back(sequence)

    def _end(self, sequence: HeldSequence, reason: str, error: ServingError | None, now_s: float) -> EndEvent:
        self._num_pending.pop(sequence, None)
        self._started.pop(sequence.number, None)
        return super()._end(sequence, reason, error, now_s)

    def _check(self, request: GenerationRequest) -> None:
        super()._check(request)
        if request.num_tokens_needed > self.cache_capacity_tokens:
            raise BadRequest(
                f"{len(request.prompt_ids)} prompt tokens + {request.sampling.max_new_tokens} new tokens "
                f"are more than the {self.cache_capacity_tokens} tokens that the cache holds"
            )
