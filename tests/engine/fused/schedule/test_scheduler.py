"""The continuous scheduler, case by case: what each step computes, and for whom."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from gptj_serve.engine.fused.schedule.plan import ContinuousStep, Row, RunnerLimits
from gptj_serve.engine.fused.schedule.scheduler import (
    LARGE_BATCH,
    MAKE_WAY_S,
    MANY_PREFILLS,
    PATIENCE_S,
    ContinuousScheduler,
)
from gptj_serve.engine.scheduler import IntegrityError, Key, Sampled, Wait
from gptj_serve.errors import BadRequest, InternalError, Overloaded, Unavailable
from gptj_serve.request import EndEvent, Event, GenerationRequest, TokenEvent
from support.fake_runner import EOS, FakeRunner, alone, limits, request


def make(max_queue: int = 8, **changes: int) -> ContinuousScheduler:
    return ContinuousScheduler(limits(**changes), max_queue=max_queue)


def add(scheduler: ContinuousScheduler, name: str, one: GenerationRequest, now_s: float = 0.0) -> Key:
    scheduler.add([((0, name), replace(one, request_id=name))], now_s)
    return (0, name)


def step_of(scheduler: ContinuousScheduler, now_s: float = 0.0) -> ContinuousStep:
    step = scheduler.schedule(now_s)
    scheduler.check()
    assert isinstance(step, ContinuousStep)
    return step


def commit(
    scheduler: ContinuousScheduler, step: ContinuousStep, *token_ids: int, now_s: float = 0.0
) -> list[Event]:
    """Commit these tokens, or 5 everywhere."""
    tokens = token_ids or (5,) * len(step.sampled_rows)
    events = scheduler.commit(step, [[Sampled(token_id)] for token_id in tokens], now_s)
    scheduler.check()
    return events


def run_step(scheduler: ContinuousScheduler, now_s: float = 0.0) -> list[Event]:
    return commit(scheduler, step_of(scheduler, now_s), now_s=now_s)


def shapes(rows: Sequence[Row]) -> list[tuple[str, int, int, bool]]:
    return [(row.request.request_id, row.start, row.end, row.samples) for row in rows]


def names(rows: Sequence[Row]) -> list[str]:
    return [row.request.request_id for row in rows]


def ends(events: Sequence[Event]) -> dict[str, str]:
    return {event.request_id: event.reason for event in events if isinstance(event, EndEvent)}


def test_nothing_to_do() -> None:
    assert make().schedule(0.0) == Wait(None)


@pytest.mark.parametrize("chunk", [0, 9])
def test_chunks_must_fit_into_a_step(chunk: int) -> None:
    with pytest.raises(ValueError, match=f"prefill_chunk is {chunk}; 1 to 8 is right"):
        ContinuousScheduler(limits(prefill_chunk=chunk, max_prefill=8), max_queue=1)


class TestPrefill:
    def test_several_prompts_share_a_step_and_a_long_one_goes_on(self) -> None:
        scheduler = make()
        for name, prompt in (("a", 3), ("b", 10), ("c", 2)):
            add(scheduler, name, request(prompt))
        step = step_of(scheduler)
        assert shapes(step.prefills) == [("a", 0, 3, True), ("b", 0, 5, False)]
        assert names(step.sampled_rows) == ["a"]
        assert step.prefills[0].token_ids == request(3).prompt_ids
        assert scheduler.num_waiting == 1
        # b goes on before c starts; only a is decoded, two wait for their prompts
        step = step_of(scheduler)
        assert shapes(step.prefills) == [("b", 5, 10, True), ("c", 0, 2, True)]
        assert shapes(step.decodes) == [("a", 3, 4, True)]
        assert names(step.sampled_rows) == ["b", "c", "a"]

    def test_beside_decodes_a_step_has_one_chunk_of_prompts(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(2, 20))
        run_step(scheduler)
        add(scheduler, "b", request(10))
        # of four tokens one is decoded
        for start in (0, 3, 6):
            step = step_of(scheduler)
            assert shapes(step.prefills) == [("b", start, start + 3, False)]
            assert names(step.decodes) == ["a"]
        assert shapes(step_of(scheduler).prefills) == [("b", 9, 10, True)]

    def test_prompts_share_a_chunk_too(self) -> None:
        scheduler = make(max_batch_size=8)
        for name in "ab":
            add(scheduler, name, request(2, 20))
        run_step(scheduler)
        add(scheduler, "d", request(1))
        add(scheduler, "e", request(5))
        assert shapes(step_of(scheduler).prefills) == [("d", 0, 1, True), ("e", 0, 1, False)]

    def test_many_that_decode_leave_half_of_a_chunk(self) -> None:
        scheduler = make(max_batch_size=8, max_prefill=16)
        for name in "abcdef":
            add(scheduler, name, request(2, 20))
        run_step(scheduler)
        add(scheduler, "g", request(5))
        step = step_of(scheduler)
        assert len(step.decodes) == 6
        assert shapes(step.prefills) == [("g", 0, 2, False)]

    def test_when_more_wait_than_run_they_get_the_whole_step(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(2, 20))
        run_step(scheduler)
        add(scheduler, "b", request(7))
        add(scheduler, "c", request(7))
        assert shapes(step_of(scheduler).prefills) == [("b", 0, 7, True)]
        # now two are decoded and one waits
        assert shapes(step_of(scheduler).prefills) == [("c", 0, 2, False)]

    def test_those_that_wait_for_a_slot_are_no_reason_for_a_long_step(self) -> None:
        scheduler = make(max_batch_size=2)
        add(scheduler, "a", request(2, 20))
        run_step(scheduler)
        for name in "bcdef":
            add(scheduler, name, request(8))
        assert shapes(step_of(scheduler).prefills) == [("b", 0, 3, False)]

    def test_first_come_first_served_even_if_a_later_one_would_fit(self) -> None:
        scheduler = make(num_blocks=8)
        add(scheduler, "a", request(8, 8))
        run_step(scheduler)
        add(scheduler, "long", request(20))
        add(scheduler, "short", request(1))
        assert step_of(scheduler).prefills == ()
        assert scheduler.num_waiting == 2

    def test_the_next_token_has_its_block_from_the_start(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(3))
        add(scheduler, "b", request(4))
        assert [len(row.blocks) for row in step_of(scheduler).prefills] == [1, 2]

    def test_a_block_for_each_that_runs_stays_free(self) -> None:
        # a has 2 of 5 blocks; 3 are free: b's two leave one for a, c's one none for both
        scheduler = make(num_blocks=5)
        for name, prompt in (("a", 4), ("b", 4), ("c", 1)):
            add(scheduler, name, request(prompt, 4))
        assert names(step_of(scheduler).prefills) == ["a", "b"]
        assert step_of(scheduler).prefills == ()


class TestSeeds:
    """Sequences whose seed the client chose."""

    def test_same_chunks_with_and_without_company(self) -> None:
        chunks = []
        for company in (False, True):
            scheduler = make()
            if company:
                add(scheduler, "a", request(3, 20))
                run_step(scheduler)
                add(scheduler, "b", request(1, 20))
            add(scheduler, "seeded", request(10, reproducible=True))
            add(scheduler, "c", request(1, 20))
            steps = [step_of(scheduler) for _ in range(6)]
            with_seed = [step for step in steps if "seeded" in names(step.prefills)]
            assert all(len(step.prefills) == 1 for step in with_seed)
            chunks.append([shapes(step.prefills) for step in with_seed])
        assert chunks[0] == chunks[1]
        assert [(start, end) for ((_, start, end, _),) in chunks[0]] == [(0, 4), (4, 8), (8, 10)]

    def test_they_decode_with_everybody(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(3, 20))
        add(scheduler, "seeded", request(3, 20, reproducible=True))
        run_step(scheduler)
        run_step(scheduler)
        assert names(step_of(scheduler).decodes) == ["a", "seeded"]

    def test_nobody_passes_them(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(2, 20))
        add(scheduler, "seeded", request(2, 20, reproducible=True))
        add(scheduler, "b", request(2, 20))
        assert [names(step_of(scheduler).prefills) for _ in range(3)] == [["a"], ["seeded"], ["b"]]

    def test_the_prompt_is_cut_as_before_when_it_is_computed_again(self) -> None:
        scheduler = make(num_blocks=6)
        add(scheduler, "a", request(7, 12))
        add(scheduler, "seeded", request(6, 8, reproducible=True))
        steps = []
        while not scheduler.is_idle:
            steps.append(step_of(scheduler))
            commit(scheduler, steps[-1])
        assert scheduler.counters.preempted == 1
        chunks = [shape for step in steps for shape in shapes(step.prefills) if shape[0] == "seeded"]
        first, again = chunks[:2], chunks[2:]
        assert first == [("seeded", 0, 4, False), ("seeded", 4, 6, True)]
        assert again[:2] == [("seeded", 0, 4, False), ("seeded", 4, 6, False)]
        assert again[-1][3]


class TestAhead:
    """A step is planned before the tokens of the one before are known."""

    def test_the_next_token_is_asked_for_unseen(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(3, 5))
        first, second = step_of(scheduler), step_of(scheduler)
        assert (second.decodes[0].token_ids, second.decodes[0].start) == (None, 3)
        assert [event.request_id for event in commit(scheduler, first)] == ["a"]
        assert step_of(scheduler).decodes[0].start == 4
        assert commit(scheduler, second, 7) == [TokenEvent("a", 7, None)]

    def test_never_more_tokens_than_wanted(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(3, 2))
        first, second = step_of(scheduler), step_of(scheduler)
        assert scheduler.schedule(0.0) == Wait(None)
        assert ends(commit(scheduler, first)) == {}
        assert ends(commit(scheduler, second)) == {"a": "length"}
        assert scheduler.is_idle

    def test_an_end_known_late_frees_slot_and_blocks_at_once(self) -> None:
        scheduler = make(max_batch_size=1)
        add(scheduler, "a", request(3, 5, eos=True))
        add(scheduler, "b", request(3, 5))
        first, second = step_of(scheduler), step_of(scheduler)
        assert ends(commit(scheduler, first, EOS)) == {"a": "eos_token"}
        third = step_of(scheduler)
        assert names(third.prefills) == ["b"]
        assert third.prefills[0].slot == second.decodes[0].slot
        assert commit(scheduler, second, 5) == []
        assert commit(scheduler, third, 6) == [TokenEvent("b", 6, None)]
        assert scheduler.counters.generated_tokens == 2

    def test_an_abort_frees_at_once_and_what_comes_later_is_ignored(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(3, 5))
        add(scheduler, "b", request(3, 5))
        first, second = step_of(scheduler), step_of(scheduler)
        assert ends(scheduler.abort((0, "a"), 0.0)) == {"a": "cancelled"}
        assert scheduler.num_cache_tokens == 4
        assert scheduler.abort((0, "a"), 0.0) == []
        assert [event.request_id for step in (first, second) for event in commit(scheduler, step)] == [
            "b",
            "b",
        ]


class TestPreemption:
    """The cache runs out: 5 blocks of 4 positions; a and b hold two each, b is the younger."""

    def start(self) -> tuple[ContinuousScheduler, list[ContinuousStep]]:
        scheduler = make(num_blocks=5)
        add(scheduler, "a", request(4, 12))
        add(scheduler, "b", request(4, 12))
        # five steps: 4 + 4 positions are cached for each of them
        for _ in range(4):
            run_step(scheduler)
        return scheduler, [step_of(scheduler)]

    def test_the_youngest_makes_room_and_comes_back_first(self) -> None:
        scheduler, (flying,) = self.start()
        add(scheduler, "c", request(1, 1))
        step = step_of(scheduler)  # a and b each need a third block, one is free
        assert names(step.decodes) == ["a"]
        assert (scheduler.num_running, scheduler.num_waiting, scheduler.counters.preempted) == (1, 2, 1)
        # b's last token is still on its way: it counts, and b may not start again before
        assert [event.request_id for event in commit(scheduler, flying, 5, 6)] == ["a", "b"]
        commit(scheduler, step)
        while names((step := step_of(scheduler)).prefills) == []:
            commit(scheduler, step)
        row = step.prefills[0]
        assert (row.request.request_id, row.start) == ("b", 0)
        assert row.token_ids == (*request(4).prompt_ids, 5, 5, 5, 5)
        assert scheduler._started[row.sequence].generated_ids == [5, 5, 5, 5, 6]
        assert scheduler.counters.prompt_tokens == 8

    def test_not_back_before_its_tokens_are_known(self) -> None:
        scheduler, (flying,) = self.start()
        ahead = step_of(scheduler)
        scheduler.abort((0, "a"), 0.0)
        assert scheduler.schedule(0.0) == Wait(None)
        commit(scheduler, flying)
        commit(scheduler, ahead)
        assert names(step_of(scheduler).prefills) == ["b"]

    def test_it_may_end_by_a_token_that_was_on_its_way(self) -> None:
        scheduler, (flying,) = self.start()
        step_of(scheduler)
        events = scheduler.commit(flying, [[Sampled(5)], [Sampled(error=InternalError("nan"))]], 0.0)
        assert ends(events) == {"b": "failed"}
        scheduler.check()
        assert (scheduler.num_waiting, scheduler.num_running) == (0, 1)

    def test_it_fails_with_a_step_that_it_was_part_of(self) -> None:
        scheduler, (flying,) = self.start()
        ahead = step_of(scheduler)
        assert ends(scheduler.fail(flying, InternalError("x"), 0.0)) == {"a": "failed", "b": "failed"}
        assert commit(scheduler, ahead) == []
        assert scheduler.is_idle

    def test_a_client_notices_nothing(self) -> None:
        scheduler = make(num_blocks=5)
        runner = FakeRunner(limits(num_blocks=5))
        asked = {name: request(4, 12, first=first) for first, name in enumerate("abc")}
        for name, one in asked.items():
            add(scheduler, name, one)
        events: list[Event] = []
        while not scheduler.is_idle:
            step = step_of(scheduler)
            events += scheduler.commit(step, runner.launch(step).results(), 0.0)
        assert scheduler.counters.preempted > 0
        for name, one in asked.items():
            own = [event for event in events if event.request_id == name]
            tokens = [event.token_id for event in own if isinstance(event, TokenEvent)]
            assert (tokens, ends(own)[name]) == alone(one)


class TestTurns:
    """Every call that waits starts one sequence in each round; what runs can be asked to make way."""

    def add_call(
        self, scheduler: ContinuousScheduler, name: str, number: int, new: int = 9, **options: bool
    ) -> None:
        one = request(2, new, **options)
        keys = [(0, f"{name}{index}") for index in range(number)]
        scheduler.add([(key, replace(one, request_id=key[1])) for key in keys], 0.0)

    def run_until(self, scheduler: ContinuousScheduler, now_s: float, num_steps: int = 1) -> list[str]:
        """Those that started, at this time."""
        started = []
        for _ in range(num_steps):
            step = step_of(scheduler, now_s)
            started += names([row for row in step.prefills if row.start == 0])
            commit(scheduler, step, now_s=now_s)
        return started

    def test_a_new_call_comes_after_one_of_each_not_after_all(self) -> None:
        scheduler = make(max_batch_size=1, max_queue=30)
        self.add_call(scheduler, "a", 4, new=1)
        assert self.run_until(scheduler, 0.0) == ["a0"]
        self.add_call(scheduler, "b", 2, new=1)
        self.add_call(scheduler, "c", 1, new=1)
        assert self.run_until(scheduler, 0.0, 6) == ["a1", "b0", "c0", "a2", "b1", "a3"]

    def full_house(self, **options: bool) -> ContinuousScheduler:
        scheduler = make(max_batch_size=4, num_blocks=40, max_queue=30)
        self.add_call(scheduler, "a", 4, new=25, **options)
        assert self.run_until(scheduler, 0.0, 4) == ["a0", "a1", "a2", "a3"]
        self.add_call(scheduler, "b", 1, new=1)
        self.add_call(scheduler, "c", 1, new=1)
        return scheduler

    def test_the_youngest_of_a_large_call_makes_way_after_a_while(self) -> None:
        scheduler = self.full_house()
        assert self.run_until(scheduler, PATIENCE_S / 2, 3) == []
        # b has one token and leaves; c follows at once, and then the one that made way comes back
        assert self.run_until(scheduler, PATIENCE_S, 3) == ["b0", "c0", "a3"]
        assert scheduler.counters.preempted == 1

    def test_it_says_what_it_would_have_said(self) -> None:
        scheduler, runner = (
            make(max_batch_size=2, num_blocks=40),
            FakeRunner(limits(max_batch_size=2, num_blocks=40)),
        )
        asked = [request(4, 12, first=first) for first in range(2)]
        scheduler.add([((0, str(index)), one) for index, one in enumerate(asked)], 0.0)
        events: list[Event] = []
        for now_s in range(40):
            if now_s == 4:
                add(scheduler, "new", request(1, 1), float(now_s))
            if scheduler.is_idle:
                break
            step = step_of(scheduler, float(now_s))
            events += scheduler.commit(step, runner.launch(step).results(), float(now_s))
        assert scheduler.counters.preempted == 1
        for index, one in enumerate(asked):
            own = [event for event in events if event.request_id == str(index)]
            assert (
                [event.token_id for event in own if isinstance(event, TokenEvent)],
                ends(own)[str(index)],
            ) == alone(one)

    def test_one_at_a_time(self) -> None:
        scheduler = make(max_batch_size=4, num_blocks=40, max_queue=30)
        self.add_call(scheduler, "a", 4, new=25)
        self.run_until(scheduler, 0.0, 4)
        for name in "bcde":
            self.add_call(scheduler, name, 1, new=20)
        assert self.run_until(scheduler, PATIENCE_S, 3) == ["b0"]
        assert self.run_until(scheduler, PATIENCE_S + MAKE_WAY_S, 3) == ["c0"]
        assert self.run_until(scheduler, PATIENCE_S + 2 * MAKE_WAY_S, 3) == ["d0"]
        # one of each runs: e waits until one ends, and so does what made way
        assert self.run_until(scheduler, PATIENCE_S + 9 * MAKE_WAY_S, 3) == []
        assert names(step_of(scheduler, 9.0).decodes) == ["a0", "b0", "c0", "d0"]

    def test_chosen_seeds_make_no_way(self) -> None:
        scheduler = self.full_house(reproducible=True)
        assert self.run_until(scheduler, 5 * PATIENCE_S, 3) == []

    def test_nor_do_calls_of_one_for_each_other(self) -> None:
        scheduler = make(max_batch_size=2, num_blocks=40, max_queue=30)
        for name in "abc":
            self.add_call(scheduler, name, 1, new=25)
        assert self.run_until(scheduler, 0.0, 2) == ["a0", "b0"]
        assert self.run_until(scheduler, 5 * PATIENCE_S, 3) == []


class TestIntake:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({}, r"20 prompt tokens \+ 13 new tokens are more than the context of 32 tokens"),
            (
                {"max_context": 64, "num_blocks": 8},
                r"20 prompt tokens \+ 13 new tokens are more than the 32 tokens that the cache holds",
            ),
        ],
    )
    def test_what_can_never_run_is_refused(self, changes: dict[str, int], message: str) -> None:
        scheduler = make(**changes)
        with pytest.raises(BadRequest, match=message):
            add(scheduler, "a", request(20, 13))
        assert scheduler.is_idle

    @pytest.mark.parametrize(("prompt", "new"), [(20, 12), (31, 1)])
    def test_what_fills_the_whole_cache_runs(self, prompt: int, new: int) -> None:
        scheduler = make(num_blocks=8)
        add(scheduler, "a", request(prompt, new))
        while not scheduler.is_idle:
            last = run_step(scheduler)
        assert ends(last) == {"a": "length"}
        assert scheduler.counters.preempted == 0

    def test_free_slots_need_no_queue(self) -> None:
        scheduler = make(max_queue=1, max_batch_size=2)
        add(scheduler, "a", request(2, 9))
        run_step(scheduler)
        scheduler.add([((0, "b"), request()), ((0, "c"), request())], 0.0)
        with pytest.raises(Overloaded, match="1 sequences run and 2 wait, 1 more do not"):
            add(scheduler, "d", request())

    def test_closing_refuses_the_new_and_keeps_the_old(self) -> None:
        scheduler = make()
        add(scheduler, "a", request(new=1))
        scheduler.close()
        with pytest.raises(Unavailable, match="shutting down"):
            add(scheduler, "b", request())
        assert ends(run_step(scheduler)) == {"a": "length"}

    def test_deadlines_end_waiting_and_running_sequences(self) -> None:
        scheduler = make(max_batch_size=1)
        add(scheduler, "a", request(new=5, timeout_s=1.0))
        add(scheduler, "b", request(timeout_s=2.0))
        run_step(scheduler)
        (ended,) = scheduler.expire(1.0)
        assert isinstance(ended, EndEvent)
        assert ended.error is not None
        assert (ended.error.status, "1 of 5 tokens" in str(ended.error)) == (504, True)
        assert ends(scheduler.expire(2.0)) == {"b": "failed"}
        scheduler.check()
        assert scheduler.is_idle

    def test_abort_all(self) -> None:
        scheduler = make(max_batch_size=1)
        add(scheduler, "a", request())
        add(scheduler, "b", request())
        step = step_of(scheduler)
        assert ends(scheduler.abort_all(Unavailable("over"), 0.0)) == {"a": "failed", "b": "failed"}
        assert commit(scheduler, step) == []
        assert (scheduler.is_idle, scheduler.counters.failed) == (True, 2)


def test_timings_and_counters() -> None:
    scheduler = make()
    add(scheduler, "a", request(3, 2), now_s=1.0)
    first = step_of(scheduler, now_s=1.5)
    assert (scheduler.num_cache_tokens, scheduler.cache_capacity_tokens) == (3, 64)
    commit(scheduler, first, now_s=2.0)
    (_, ended) = run_step(scheduler, now_s=3.0)
    assert isinstance(ended, EndEvent)
    assert ended.timings is not None
    assert (ended.timings.queue_s, ended.timings.first_token_s, ended.timings.total_s) == (0.5, 1.0, 2.0)
    counters = scheduler.counters
    assert (counters.prompt_tokens, counters.generated_tokens, counters.finished) == (3, 2, 1)
    assert (scheduler.num_cache_tokens, scheduler.num_running) == (0, 0)


def test_a_row_without_a_token_fails_alone() -> None:
    scheduler = make()
    add(scheduler, "a", request())
    add(scheduler, "b", request())
    step = step_of(scheduler)
    events = scheduler.commit(step, [[Sampled(error=InternalError("nan"))], [Sampled(6)]], 0.0)
    assert ends(events) == {"a": "failed"}
    assert names(step_of(scheduler).decodes) == ["b"]


def test_a_failed_step_spares_those_that_are_not_in_it() -> None:
    scheduler = make(max_batch_size=2)
    for name in "abc":
        add(scheduler, name, request())
    step = step_of(scheduler)
    assert ends(scheduler.fail(step, InternalError("x"), 0.0)) == {"a": "failed", "b": "failed"}
    assert names(step_of(scheduler).prefills) == ["c"]


class TestCheck:
    """The check finds what it is there for; the books are falsified by hand."""

    @pytest.fixture
    def scheduler(self) -> ContinuousScheduler:
        scheduler = make()
        add(scheduler, "a", request(3, 9))
        add(scheduler, "b", request(3, 9))
        run_step(scheduler)
        return scheduler

    def test_a_lost_block(self, scheduler: ContinuousScheduler) -> None:
        next(iter(scheduler._seats)).blocks.pop()
        with pytest.raises(IntegrityError, match="held 0 times"):
            scheduler.check()

    def test_a_crossed_block(self, scheduler: ContinuousScheduler) -> None:
        first, second = scheduler._seats
        second.blocks += first.blocks
        with pytest.raises(IntegrityError, match="held 2 times"):
            scheduler.check()

    def test_a_crossed_slot(self, scheduler: ContinuousScheduler) -> None:
        first, second = scheduler._seats
        second.slot = first.slot
        with pytest.raises(IntegrityError, match="each once is right"):
            scheduler.check()

    def test_too_few_blocks(self, scheduler: ContinuousScheduler) -> None:
        next(iter(scheduler._seats)).num_cached = 5
        with pytest.raises(IntegrityError, match="5 positions are cached in 1 blocks"):
            scheduler.check()

    def test_a_wrong_sum(self, scheduler: ContinuousScheduler) -> None:
        scheduler._seats.num_cached += 1
        with pytest.raises(IntegrityError, match="said to be cached"):
            scheduler.check()

    def test_an_unfinished_prompt_that_was_passed(self, scheduler: ContinuousScheduler) -> None:
        first, _ = scheduler._seats
        first.token_ids += (1,)
        with pytest.raises(IntegrityError, match="before an older one"):
            scheduler.check()

    def test_tokens_awaited_for_nobody(self, scheduler: ContinuousScheduler) -> None:
        scheduler._num_pending[replace(next(iter(scheduler._seats)).sequence)] = 1
        with pytest.raises(IntegrityError, match="not held"):
            scheduler.check()


def tokens_of_mixed_steps(num_decodes: int, num_long: int) -> list[int]:
    """Tokens of each step in which sequences are decoded, while prompts of 60 tokens come in."""
    runner_limits: RunnerLimits = limits(
        max_batch_size=40, max_context=128, num_blocks=900, prefill_chunk=32, max_prefill=64
    )
    scheduler, runner = ContinuousScheduler(runner_limits, max_queue=99), FakeRunner(runner_limits)
    for number in range(num_decodes):
        add(scheduler, f"first{number}", request(2, 60))
    while scheduler.num_waiting:
        scheduler.commit(step := step_of(scheduler), runner.launch(step).results(), 0.0)
    for number in range(num_long):
        add(scheduler, f"long{number}", request(60, 1))
    found, num_prompt_tokens = [], 0
    while not scheduler.is_idle:
        step = step_of(scheduler)
        if step.decodes and step.prefills:
            num_prompt_tokens += sum(row.end - row.start for row in step.prefills)
            found.append(sum(row.end - row.start for row in (*step.prefills, *step.decodes)))
        scheduler.commit(step, runner.launch(step).results(), 0.0)
    assert num_prompt_tokens == 60 * num_long
    return found


@pytest.mark.parametrize(("num_decodes", "num_long"), [(1, 1), (3, 3), (16, 2)])
def test_decodes_wait_for_one_chunk(num_decodes: int, num_long: int) -> None:
    """The bound on the time between two tokens."""
    assert max(tokens_of_mixed_steps(num_decodes, num_long)) == 32


def test_a_large_batch_waits_for_two_chunks() -> None:
    assert max(tokens_of_mixed_steps(LARGE_BATCH, 2)) == 64


@pytest.mark.parametrize(("num_decodes", "num_long"), [(1, 2), (20, MANY_PREFILLS + 1)])
def test_many_prompts_come_first(num_decodes: int, num_long: int) -> None:
    found = tokens_of_mixed_steps(num_decodes, num_long)
    assert found[0] == 64
    assert found[-1] <= 32
