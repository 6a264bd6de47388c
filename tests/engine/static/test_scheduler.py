"""The static scheduler: who runs with whom, in which order, and that everyone gets one end."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_serve.engine.scheduler import Key, Sampled, Wait
from gptj_serve.engine.static.scheduler import Decode, Prefill, StaticScheduler, StaticStep
from gptj_serve.errors import BadRequest, InternalError, Overloaded, Unavailable
from gptj_serve.request import EndEvent, Event, GenerationRequest, SamplingParams, TokenEvent

EOS = 9


def make(**changes: float) -> StaticScheduler:
    options = {
        "max_batch_size": 4,
        "max_context": 32,
        "vocab_size": 10,
        "max_queue": 8,
        "batch_wait_s": 0.0,
        **changes,
    }
    return StaticScheduler(**options)  # type: ignore[arg-type]


def request(prompt: int = 3, new: int = 2, **options: Any) -> GenerationRequest:
    return GenerationRequest("r", (1,) * prompt, SamplingParams(new), (EOS,), **options)


def key(number: int) -> Key:
    return (0, str(number))


def add(scheduler: StaticScheduler, number: int, now_s: float = 0.0, **options: Any) -> None:
    scheduler.add([(key(number), request(**options))], now_s)


def step_of(scheduler: StaticScheduler, now_s: float = 0.0) -> StaticStep:
    step = scheduler.schedule(now_s)
    assert not isinstance(step, Wait)
    return step


def run_step(scheduler: StaticScheduler, token_id: int = 5, now_s: float = 0.0) -> list[Event]:
    step = step_of(scheduler, now_s)
    return scheduler.commit(step, [[Sampled(token_id)]] * len(step.rows), now_s)


def ends(events: list[Event]) -> dict[Key, str]:
    return {key_of(event): event.reason for event in events if isinstance(event, EndEvent)}


def key_of(event: Event) -> Key:
    return event.connection, event.request_id


def keys_of(step: StaticStep) -> list[Key | None]:
    return [row.key if row else None for row in step.rows]


def test_nothing_to_do() -> None:
    assert make().schedule(0.0) == Wait(None)


def test_requests_that_wait_together_run_together_in_order() -> None:
    scheduler = make()
    for number in range(6):
        add(scheduler, number)
    step = step_of(scheduler)
    assert isinstance(step, Prefill)
    assert keys_of(step) == [key(0), key(1), key(2), key(3)]
    assert (scheduler.num_running, scheduler.num_waiting) == (4, 2)


def test_a_request_that_comes_later_waits_for_the_next_batch() -> None:
    scheduler = make()
    add(scheduler, 0, new=2)
    run_step(scheduler)
    add(scheduler, 1)
    assert keys_of(step_of(scheduler)) == [key(0)]
    step = step_of(scheduler)
    assert isinstance(step, Decode)
    assert ends(scheduler.commit(step, [[Sampled(5)]], 0.0)) == {key(0): "length"}
    following = step_of(scheduler)
    assert isinstance(following, Prefill)
    assert keys_of(following) == [key(1)]


def test_a_sequence_that_ends_early_leaves_at_once_and_rows_keep_their_places() -> None:
    scheduler = make()
    for number, new in enumerate((3, 1, 3)):
        add(scheduler, number, new=new)
    assert ends(run_step(scheduler)) == {key(1): "length"}
    step = step_of(scheduler)
    assert keys_of(step) == [key(0), None, key(2)]
    assert scheduler.num_running == 2


def test_an_end_token_is_reported_and_ends_the_sequence() -> None:
    scheduler = make()
    add(scheduler, 0, new=5)
    events = run_step(scheduler, token_id=EOS)
    assert events[0] == TokenEvent("0", EOS, None)
    assert ends(events) == {key(0): "eos_token"}
    assert scheduler.is_idle


def test_padding_counts_against_the_context() -> None:
    # alone each fits into 32; together they would be padded to 20 + 20 columns
    scheduler = make()
    add(scheduler, 0, prompt=20, new=2)
    add(scheduler, 1, prompt=2, new=20)
    add(scheduler, 2, prompt=4, new=4)
    assert keys_of(step_of(scheduler)) == [key(0), key(2)]
    assert scheduler.num_waiting == 1


def test_sequences_with_a_chosen_seed_share_a_batch_with_their_own_call_only() -> None:
    scheduler = make(batch_wait_s=10.0)
    add(scheduler, 0, new=1)
    seeded = request(new=1, reproducible=True)
    scheduler.add([(key(1), seeded), (key(2), seeded)], 0.0)
    scheduler.add([(key(3), seeded)], 0.0)
    add(scheduler, 4, new=1)
    # others may pass it, it never waits for company, and its call stays together
    assert keys_of(step_of(scheduler)) == [key(0), key(4)]
    run_step(scheduler)
    assert keys_of(step_of(scheduler)) == [key(1), key(2)]
    run_step(scheduler)
    assert keys_of(step_of(scheduler)) == [key(3)]


def test_calls_take_turns() -> None:
    scheduler = make(max_queue=30)
    scheduler.add([(key(number), request(new=1)) for number in range(10)], 0.0)
    assert keys_of(step_of(scheduler)) == [key(0), key(1), key(2), key(3)]
    add(scheduler, 20, new=1)  # these two come while a batch of the large call runs
    scheduler.add([(key(30), request(new=1)), (key(31), request(new=1))], 0.0)
    run_step(scheduler)
    assert keys_of(step_of(scheduler)) == [key(4), key(20), key(30), key(5)]
    run_step(scheduler)
    assert keys_of(step_of(scheduler)) == [key(31), key(6), key(7), key(8)]


def test_however_many_others_come_a_large_call_goes_on() -> None:
    scheduler = make(max_queue=30, max_batch_size=1)
    scheduler.add([(key(number), request(new=1)) for number in range(4)], 0.0)
    started: list[Key | None] = []
    for number in range(10, 30):
        started += keys_of(step_of(scheduler))
        add(scheduler, number, new=1)
        add(scheduler, 100 + number, new=1)
        run_step(scheduler)
        if len(started) == 12:
            break
    # two others come while each one runs: rounds have 1, 3, 7 sequences, one of them of the large call
    large = [key(0), key(1), key(2), key(3)]
    assert [index for index, one in enumerate(started) if one in large] == [0, 1, 4, 11]


def test_one_that_does_not_fit_beside_others_is_first_in_the_next_batch() -> None:
    scheduler = make()
    add(scheduler, 0, prompt=20, new=1)
    add(scheduler, 1, prompt=2, new=20)
    run_step(scheduler)
    for number in (2, 3):
        add(scheduler, number, prompt=20, new=1)
    assert keys_of(step_of(scheduler)) == [key(1)]


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        (20, 13, r"20 prompt tokens \+ 13 new tokens are more than the context of 32 tokens"),
        (0, 1, "at least 1 is needed"),
        (1, 0, "max_new_tokens must be at least 1"),
    ],
)
def test_what_can_never_run_is_refused(prompt: int, new: int, message: str) -> None:
    scheduler = make()
    with pytest.raises(BadRequest, match=message):
        add(scheduler, 0, prompt=prompt, new=new)
    assert scheduler.is_idle


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    bad = GenerationRequest("r", (1, 10), SamplingParams(1))
    with pytest.raises(BadRequest, match="outside 0 to 9"):
        make().add([(key(0), bad)], 0.0)


def test_a_full_queue_refuses_and_takes_a_group_whole_or_not_at_all() -> None:
    scheduler = make(max_queue=2, max_batch_size=1)
    add(scheduler, 0)
    run_step(scheduler)
    add(scheduler, 1)
    with pytest.raises(Overloaded, match="1 sequences run and 1 wait, 2 more do") as refusal:
        scheduler.add([(key(2), request()), (key(3), request())], 0.0)
    assert refusal.value.retry_after_s
    assert scheduler.num_waiting == 1
    add(scheduler, 2)


def test_an_idle_engine_takes_a_whole_batch_without_a_queue() -> None:
    scheduler = make(max_queue=0)
    for number in range(4):
        add(scheduler, number)
    with pytest.raises(Overloaded):
        add(scheduler, 4)


def test_after_a_batch_of_several_the_next_waits_for_company() -> None:
    scheduler = make(batch_wait_s=0.005)
    add(scheduler, 0, new=1)
    add(scheduler, 1, new=1)
    run_step(scheduler, now_s=1.0)
    add(scheduler, 2, now_s=1.001)
    assert scheduler.schedule(1.001) == Wait(1.005)
    add(scheduler, 3, now_s=1.002)
    assert keys_of(step_of(scheduler, 1.005)) == [key(2), key(3)]


def test_a_full_batch_waits_for_nobody() -> None:
    scheduler = make(batch_wait_s=10.0, max_batch_size=2)
    for number in range(4):
        add(scheduler, number, new=1)
    run_step(scheduler)
    assert keys_of(step_of(scheduler)) == [key(2), key(3)]


def test_a_lone_client_never_waits() -> None:
    scheduler = make(batch_wait_s=10.0)
    add(scheduler, 0, new=1)
    run_step(scheduler)
    add(scheduler, 1)
    assert keys_of(step_of(scheduler)) == [key(1)]


def test_a_deadline_fails_waiting_and_running_sequences() -> None:
    scheduler = make(max_batch_size=1)
    add(scheduler, 0, new=5, timeout_s=1.0)
    add(scheduler, 1, timeout_s=2.0)
    run_step(scheduler)
    (ended,) = scheduler.expire(1.0)
    assert isinstance(ended, EndEvent)
    assert ended.error is not None
    assert (key_of(ended), ended.reason, ended.error.status) == (key(0), "failed", 504)
    assert "1 of 5 tokens" in str(ended.error)
    (waiting,) = scheduler.expire(2.0)
    assert key_of(waiting) == key(1)
    assert scheduler.is_idle


def test_abort_frees_the_row_and_leaves_neighbours() -> None:
    scheduler = make()
    for number in range(3):
        add(scheduler, number, new=3)
    run_step(scheduler)
    assert ends(scheduler.abort(key(1), 0.0)) == {key(1): "cancelled"}
    assert scheduler.abort(key(1), 0.0) == []
    assert keys_of(step_of(scheduler)) == [key(0), None, key(2)]


def test_a_row_aborted_while_its_step_ran_gets_nothing_more() -> None:
    scheduler = make()
    add(scheduler, 0)
    add(scheduler, 1)
    step = step_of(scheduler)
    scheduler.abort(key(0), 0.0)
    events = scheduler.commit(step, [[Sampled(5)], [Sampled(6)]], 0.0)
    assert events == [TokenEvent("1", 6, None)]


def test_a_failed_step_fails_the_batch_and_spares_the_queue() -> None:
    scheduler = make(max_batch_size=2)
    for number in range(3):
        add(scheduler, number)
    failed = scheduler.fail(step_of(scheduler), InternalError("x"), 0.0)
    assert ends(failed) == {key(0): "failed", key(1): "failed"}
    assert keys_of(step_of(scheduler)) == [key(2)]


def test_a_row_without_a_token_fails_alone() -> None:
    scheduler = make()
    add(scheduler, 0)
    add(scheduler, 1)
    step = step_of(scheduler)
    events = scheduler.commit(step, [[Sampled(error=InternalError("nan"))], [Sampled(6)]], 0.0)
    assert ends(events) == {key(0): "failed"}
    assert scheduler.num_running == 1


def test_closing_refuses_the_new_and_keeps_the_old() -> None:
    scheduler = make()
    add(scheduler, 0, new=1)
    scheduler.close()
    with pytest.raises(Unavailable, match="shutting down"):
        add(scheduler, 1)
    assert ends(run_step(scheduler)) == {key(0): "length"}


def test_timings_are_those_of_the_clock() -> None:
    scheduler = make()
    add(scheduler, 0, now_s=1.0, new=2)
    run_step(scheduler, now_s=1.5)
    (_, ended) = run_step(scheduler, now_s=3.0)
    assert isinstance(ended, EndEvent)
    assert ended.timings is not None
    # the step began at 1.5 and, on this clock, its token was known at 1.5
    assert (ended.timings.queue_s, ended.timings.first_token_s, ended.timings.total_s) == (0.5, 0.5, 2.0)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 6)),
        st.tuples(st.just("step"), st.sampled_from([5, EOS]), st.just(0)),
        st.tuples(st.just("fail"), st.just(0), st.just(0)),
        st.tuples(st.just("abort"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("expire"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(OPERATIONS)
def test_every_accepted_sequence_ends_exactly_once(operations: list[tuple[str, int, int]]) -> None:
    scheduler = make()
    accepted: set[Key] = set()
    ended: list[Key] = []
    for now, (operation, a, b) in enumerate(operations):
        events: list[Event] = []
        if operation == "add" and a + b <= 32 and scheduler.num_waiting < 8:
            add(scheduler, now, now_s=now, prompt=a, new=b, timeout_s=10.0)
            accepted.add(key(now))
        elif operation == "abort":
            events = scheduler.abort(key(a), now)
        elif operation == "expire":
            events = scheduler.expire(now)
        elif operation in ("step", "fail") and not scheduler.is_idle:
            step = step_of(scheduler, now)
            live = [row for row in step.rows if row]
            assert len(live) <= 4
            longest = max(len(row.request.prompt_ids) for row in live)
            assert longest + max(row.request.sampling.max_new_tokens for row in live) <= 32
            if operation == "fail":
                events = scheduler.fail(step, InternalError("x"), now)
            else:
                events = scheduler.commit(step, [[Sampled(a)]] * len(step.rows), now)
        ended += [key_of(event) for event in events if isinstance(event, EndEvent)]
    ended += [key_of(event) for event in scheduler.abort_all(InternalError("end"), 1e9)]
    assert sorted(ended) == sorted(accepted)
    assert scheduler.is_idle
