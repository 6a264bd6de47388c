"""Whatever happens, in any order: one end each, the tokens that it gets alone, no leak, progress."""

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gptj_serve.engine.fused.schedule.plan import ContinuousStep, RunnerLimits
from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler
from gptj_serve.engine.scheduler import HeldSequence, Key, Sampled, Wait
from gptj_serve.errors import InternalError, Overloaded
from gptj_serve.request import EndEvent, Event, GenerationRequest, TokenEvent
from support.fake_runner import FakePending, FakeRunner, alone, limits, request

LIMITS = st.builds(
    lambda slots, size, blocks, chunk, more: limits(
        max_batch_size=slots,
        block_size=size,
        # the whole context fits at least once
        num_blocks=-(-24 // size) + blocks,
        max_context=24,
        prefill_chunk=chunk,
        max_prefill=chunk + more,
    ),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 12),
    st.integers(1, 7),
    st.integers(0, 9),
)

REQUESTS = st.builds(
    lambda prompt, new, first, eos, reproducible, timeout_s: request(
        prompt, new, first=first, eos=eos, reproducible=reproducible, timeout_s=timeout_s
    ),
    st.integers(1, 14),
    st.integers(1, 10),
    st.integers(0, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, None, 5.0, 30.0]),
)


def key_of(event: Event) -> Key:
    return event.connection, event.request_id


class Driver:
    """A scheduler and a runner, and all that must hold of them at every moment."""

    def __init__(self, runner_limits: RunnerLimits) -> None:
        self.limits = runner_limits
        self.scheduler = ContinuousScheduler(runner_limits, max_queue=20)
        self.runner = FakeRunner(runner_limits)
        self.in_flight: list[tuple[ContinuousStep, FakePending]] = []
        self.accepted: dict[Key, GenerationRequest] = {}
        self.tokens: dict[Key, list[int]] = {}
        self.ends: dict[Key, EndEvent] = {}
        self.num_asked: Counter[HeldSequence] = Counter()
        self.now_s = 0.0
        self.calls: dict[Key, int] = {}
        self.started: set[Key] = set()
        self.run_order: list[Key] = []  # of those that have a slot, the oldest first
        self.started_before: dict[int, Counter[int]] = {}  # of each call, when another call came

    def add(self, requests: list[GenerationRequest]) -> None:
        group = [((0, str(len(self.accepted) + i)), one) for i, one in enumerate(requests)]
        try:
            self.scheduler.add(group, self.now_s)
        except Overloaded:
            return
        call = len(self.started_before)
        self.calls.update((key, call) for key, _ in group)
        self.started_before[call] = Counter(self.calls[key] for key in self.started)
        self.accepted.update(group)

    def note(self, events: list[Event]) -> None:
        for event in events:
            assert key_of(event) not in self.ends, "something was said after the end"
            if isinstance(event, TokenEvent):
                self.tokens.setdefault(key_of(event), []).append(event.token_id)
            else:
                self.ends[key_of(event)] = event

    def oldest(self) -> Key | None:
        """The one that has had its slot for longest."""
        return next((key for key in self.run_order if key not in self.ends), None)

    def check_turns(self) -> None:
        """Whoever waits has seen every other call start as many as its own, and one or two more."""
        started = Counter(self.calls[key] for key in self.started)
        over = Counter(self.calls[key] for key in self.ends if key not in self.started)
        for call in {
            call for key, call in self.calls.items() if key not in self.started and key not in self.ends
        }:
            for other, number in (started - self.started_before[call]).items():
                assert other == call or number <= started[call] + over[call] + 2, (call, other)

    def schedule(self) -> None:
        oldest = self.oldest()
        step = self.scheduler.schedule(self.now_s)
        self.scheduler.check()
        waiting = self.scheduler.held_keys()[: self.scheduler.num_waiting]
        assert oldest not in waiting
        self.run_order = [key for key in self.run_order if key not in waiting]
        if isinstance(step, Wait):
            assert step.until_s is None
            assert self.in_flight or self.ends.keys() == self.accepted.keys(), (
                "nothing runs, nothing is in flight, and yet somebody waits"
            )
            return
        self.check_step(step, oldest)
        self.in_flight.append((step, self.runner.launch(step)))

    def check_step(self, step: ContinuousStep, oldest: Key | None) -> None:
        num_prompt_tokens = sum(row.end - row.start for row in step.prefills)
        assert num_prompt_tokens <= self.limits.max_prefill
        if num_prompt_tokens > self.limits.prefill_chunk:
            assert len(step.prefills) + self.scheduler.num_waiting > len(step.decodes)
        for row in step.prefills:
            if row.request.reproducible:
                num_prompt = len(row.request.prompt_ids)
                assert len(step.prefills) == 1
                start_of_part = row.start if row.start < num_prompt else row.start - num_prompt
                assert start_of_part % self.limits.prefill_chunk == 0
                assert row.samples or row.end == num_prompt or num_prompt_tokens == self.limits.prefill_chunk
        # progress: the oldest has its part in every step until all its tokens are asked for
        in_step = {self.scheduler._started[row.sequence].key for row in (*step.prefills, *step.decodes)}
        assert oldest is None or oldest in in_step or self.is_all_asked(oldest)
        begun = [self.scheduler._started[row.sequence].key for row in step.prefills if row.start == 0]
        self.started.update(begun)
        self.run_order = [key for key in self.run_order if key not in begun] + begun
        self.check_turns()
        self.num_asked.update(self.scheduler._started[row.sequence] for row in step.sampled_rows)

    def is_all_asked(self, key: Key) -> bool:
        asked = {sequence.key: number for sequence, number in self.num_asked.items()}
        return asked.get(key, 0) >= self.accepted[key].sampling.max_new_tokens

    def answer(self, *, fails: bool = False, errors: int = 0) -> None:
        """Commit the oldest step in flight, the first rows with an error, or fail it."""
        step, pending = self.in_flight.pop(0)
        if fails:
            events = self.scheduler.fail(step, InternalError("the step"), self.now_s)
        else:
            sampled = pending.results()
            sampled[:errors] = [[Sampled(error=InternalError("the row"))]] * len(sampled[:errors])
            events = self.scheduler.commit(step, sampled, self.now_s)
        self.note(events)
        self.scheduler.check()

    def finish(self) -> None:
        """Run until all have ended, which takes no more steps than the tokens that are left, one by one."""
        most = 2 * sum(one.num_tokens_needed for key, one in self.accepted.items() if key not in self.ends)
        for _ in range(most + 2):
            if self.scheduler.is_idle:
                break
            self.schedule()
            if self.in_flight:
                self.answer()
        while self.in_flight:
            self.answer()
        self.check_end()

    def check_end(self) -> None:
        assert self.ends.keys() == self.accepted.keys()
        for key, ended in self.ends.items():
            tokens, reason = alone(self.accepted[key])
            got = self.tokens.get(key, [])
            if ended.reason in ("length", "eos_token"):
                assert (got, ended.reason) == (tokens, reason)
            else:
                assert got == tokens[: len(got)]
        self.scheduler.check()
        assert (self.scheduler.is_idle, self.scheduler.num_cache_tokens) == (True, 0)
        counters = self.scheduler.counters
        # nothing is computed twice but for a preemption
        assert self.runner.num_starts <= len(self.accepted) + counters.preempted
        assert counters.finished + counters.cancelled + counters.failed == len(self.accepted)
        assert counters.generated_tokens == sum(map(len, self.tokens.values()))


class Batching(RuleBasedStateMachine):
    """Everything that a step loop and its clients may do, in any order."""

    @initialize(runner_limits=LIMITS)
    def start(self, runner_limits: RunnerLimits) -> None:
        self.driver = Driver(runner_limits)

    @rule(requests=st.lists(REQUESTS, min_size=1, max_size=4))
    def add(self, requests: list[GenerationRequest]) -> None:
        self.driver.add(requests)

    @rule(number=st.integers(0, 30))
    def abort(self, number: int) -> None:
        self.driver.note(self.driver.scheduler.abort((0, str(number)), self.driver.now_s))

    @rule(seconds=st.sampled_from([1.0, 10.0]))
    def expire(self, seconds: float) -> None:
        self.driver.now_s += seconds
        self.driver.note(self.driver.scheduler.expire(self.driver.now_s))

    @precondition(lambda self: len(self.driver.in_flight) < 2)
    @rule()
    def schedule(self) -> None:
        self.driver.schedule()

    @precondition(lambda self: len(self.driver.in_flight) < 2)
    @rule(number=st.integers(1, 12))
    def run_ahead(self, number: int) -> None:
        """What the step loop does: one step in flight while the next one is planned."""
        for _ in range(number):
            self.driver.schedule()
            if len(self.driver.in_flight) > 1:
                self.driver.answer()

    @precondition(lambda self: self.driver.in_flight)
    @rule(errors=st.sampled_from([0, 0, 0, 0, 1]))
    def commit(self, errors: int) -> None:
        self.driver.answer(errors=errors)

    @precondition(lambda self: self.driver.in_flight)
    @rule()
    def fail(self) -> None:
        self.driver.answer(fails=True)

    @invariant()
    def books_add_up(self) -> None:
        if hasattr(self, "driver"):
            self.driver.scheduler.check()

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.finish()


TestBatching = Batching.TestCase
TestBatching.settings = settings(max_examples=75, stateful_step_count=30)


def test_a_full_house_with_a_small_cache() -> None:
    """Heavy preemption for certain, so that the test above is not true of idle schedulers alone."""
    num_preempted = 0
    for seed in range(20):
        dice = random.Random(seed)
        driver = Driver(limits(block_size=1, num_blocks=24 + seed, max_context=24, max_prefill=9))
        for _ in range(40):
            one = request(
                dice.randint(1, 4),
                dice.randint(10, 20),
                first=dice.randrange(10),
                eos=dice.random() < 0.5,
                reproducible=dice.random() < 0.3,
            )
            driver.add([one])
            for _ in range(dice.randrange(6)):
                driver.schedule()
                if len(driver.in_flight) > 1:
                    driver.answer()
            if dice.random() < 0.05:
                driver.note(driver.scheduler.abort((0, str(dice.randrange(40))), 0.0))
        driver.finish()
        num_preempted += driver.scheduler.counters.preempted
    assert num_preempted > 100
