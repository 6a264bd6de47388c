"""The continuous step loop: one step in flight, and what is lost when a step fails."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_serve.engine.failures import MAX_FAILED_STEPS, BackendDead, BatchLost, FailedSteps
from gptj_serve.engine.fused.schedule.scheduler import ContinuousScheduler
from gptj_serve.engine.scheduler import Counters, IntegrityError, Wait
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.request import EndEvent, Event, GenerationRequest, TokenEvent
from support.fake_runner import FakeRunner, alone, limits, request


class Joined:
    """A loop over the fake runner, and a record of what it asks of it."""

    def __init__(self, **changes: int) -> None:
        self.runner = FakeRunner(limits(**changes))
        self.scheduler = ContinuousScheduler(self.runner.limits, max_queue=50)
        self.now_s = 0.0
        self.loop = StepLoop(self.scheduler, self.runner, lambda: self.now_s, steps_ahead=1, checks=True)
        self.said: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.runner.before_launch = lambda number: self.say(f"launch {number}")
        self.runner.before_results = lambda number: self.say(f"results {number}")

    def say(self, what: str) -> None:
        self.said.append(what)
        if what in self.errors:
            raise self.errors[what]

    def add(self, name: str, one: GenerationRequest) -> None:
        self.scheduler.add([((0, name), one)], self.now_s)

    def run(self) -> list[Event]:
        events: list[Event] = []
        for _ in range(500):
            more, wait = self.loop.step()
            events += more
            if wait is not None:
                return events
        raise AssertionError("the loop never came to rest")


def tokens(events: list[Event], name: str) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.request_id == name]


def ends(events: list[Event]) -> dict[str, EndEvent]:
    found = [event for event in events if isinstance(event, EndEvent)]
    assert len({event.request_id for event in found}) == len(found)
    return {event.request_id: event for event in found}


def test_the_next_step_is_launched_before_the_results_of_the_last() -> None:
    joined = Joined()
    joined.add("a", request(3, 3))
    assert joined.loop.step() == ([], None)
    assert joined.said == ["launch 0"]
    events, wait = joined.loop.step()
    assert joined.said[1:] == ["launch 1", "results 0"]
    assert (len(events), wait) == (1, None)
    joined.run()
    assert joined.said[3:] == ["launch 2", "results 1", "results 2"]
    assert joined.loop.num_steps == 3


def test_what_is_in_flight_is_finished_when_nothing_can_be_planned() -> None:
    joined = Joined()
    joined.add("a", request(3, 1))
    joined.loop.step()
    events, wait = joined.loop.step()
    assert (tokens(events, "a"), wait) == (alone(request(3, 1))[0], None)
    assert joined.loop.step() == ([], Wait(None))


def test_deadlines_pass_while_steps_are_in_flight() -> None:
    joined = Joined()
    joined.add("a", request(3, 9, timeout_s=1.0))
    joined.loop.step()
    joined.now_s = 1.0
    events = joined.run()
    assert ends(events)["a"].reason == "failed"
    assert joined.scheduler.num_cache_tokens == 0


def test_a_lost_step_fails_its_sequences_and_no_others() -> None:
    joined = Joined(max_batch_size=2)
    for name in "abc":
        joined.add(name, request(2, 4))
    # a and b are in step 1 and, ahead, in step 2
    joined.errors = {"results 1": BatchLost("out of memory")}
    events = joined.run()
    ended = ends(events)
    for name in "ab":
        assert tokens(events, name) == alone(request(2, 4))[0][:1]
        assert str(ended[name].error) == "out of memory"
    assert (tokens(events, "c"), ended["c"].reason) == alone(request(2, 4))
    assert joined.said.index("results 2") > joined.said.index("results 1")


def test_a_step_that_cannot_be_launched_costs_no_token_of_the_one_before() -> None:
    joined = Joined()
    joined.add("a", request(2, 2))
    joined.add("b", request(2, 4))
    joined.errors = {"launch 2": ValueError("slot 99"), "launch 9": ValueError("never")}
    events = joined.run()
    ended = ends(events)
    # a's last token was in step 1, which was in flight
    assert (tokens(events, "a"), ended["a"].reason) == alone(request(2, 2))
    assert tokens(events, "b") == alone(request(2, 4))[0][:2]
    assert str(ended["b"].error) == "the engine failed on this batch"
    assert "results 2" not in joined.said
    assert joined.loop.num_steps == 3
    joined.add("c", request(2, 4))
    assert ends(joined.run())["c"].reason == "length"


@pytest.mark.parametrize("where", ["launch 0", "launch 1", "results 0", "results 1"])
def test_a_dead_backend_ends_the_process(where: str) -> None:
    joined = Joined()
    joined.add("a", request(2, 4))
    joined.errors = {where: BackendDead("cuda")}
    with pytest.raises(BackendDead):
        joined.run()
    # nothing more is asked of it
    assert joined.said[-1] == where


def fail_alone(joined: Joined, name: str) -> None:
    """A sequence whose only step fails; nothing else is held."""
    joined.errors = {f"launch {num_launched(joined)}": KeyError("slot")}
    joined.add(name, request(2, 4))
    assert ends(joined.run())[name].reason == "failed"


def num_launched(joined: Joined) -> int:
    return sum(what.startswith("launch") for what in joined.said)


def test_steps_that_do_nothing_but_fail_end_the_process() -> None:
    joined = Joined()
    for number in range(MAX_FAILED_STEPS - 1):
        fail_alone(joined, str(number))
        # its call's rest, which waited, says nothing of the engine
        joined.add("rest", request(2, 4))
        joined.scheduler.abort((0, "rest"), joined.now_s)
    joined.errors = {f"launch {num_launched(joined)}": KeyError("slot")}
    joined.add("last", request(2, 4))
    events, _ = joined.loop.step()
    assert ends(events)["last"].reason == "failed"  # it is told so before the end
    with pytest.raises(BackendDead, match=f"{MAX_FAILED_STEPS} steps have failed"):
        joined.loop.step()


def test_a_batch_that_is_lost_for_its_own_sake_is_not_counted() -> None:
    joined = Joined()
    for number in range(2 * MAX_FAILED_STEPS):
        joined.errors = {f"launch {num_launched(joined)}": BatchLost("no memory for it")}
        joined.add(str(number), request(2, 4))
        joined.run()


def test_a_call_counts_once_however_many_steps_it_needs() -> None:
    failed = FailedSteps(Counters())
    for _ in range(2 * MAX_FAILED_STEPS):
        failed.add(KeyError("slot"), {7})
    failed.check()
    for number in range(MAX_FAILED_STEPS - 1):
        failed.check()
        failed.add(KeyError("slot"), {7, number + 10})
    with pytest.raises(BackendDead):
        failed.check()


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["finished", "cancelled"])
def test_a_sequence_that_is_served_forgives_the_failed_steps(is_cancelled: bool) -> None:
    joined = Joined()
    for number in range(3 * MAX_FAILED_STEPS):
        fail_alone(joined, f"bad {number}")
        if number % (MAX_FAILED_STEPS - 1) == 0:
            joined.add("good", request(2, 4))
            joined.loop.step()
            if is_cancelled:  # as a stop string does it
                joined.scheduler.abort((0, "good"), joined.now_s)
            joined.run()


def test_checks_can_be_switched_on() -> None:
    joined = Joined()
    joined.add("a", request(2, 4))
    joined.loop.step()
    next(iter(joined.scheduler._seats)).blocks.pop()
    with pytest.raises(IntegrityError):
        joined.loop.step()


CALLS = st.lists(
    st.builds(
        lambda prompt, new, first, eos, reproducible: request(
            prompt, new, first=first, eos=eos, reproducible=reproducible
        ),
        st.integers(1, 12),
        st.integers(1, 10),
        st.integers(0, 9),
        st.booleans(),
        st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(CALLS, st.dictionaries(st.integers(0, 40), st.sampled_from(["launch", "results"]), max_size=3))
def test_only_the_sequences_of_failed_steps_fail(
    calls: list[GenerationRequest], failures: dict[int, str]
) -> None:
    joined = Joined(num_blocks=7)
    joined.errors = {f"{where} {number}": BatchLost("x") for number, where in failures.items()}
    for number, one in enumerate(calls):
        joined.add(str(number), one)
    events = joined.run()
    ended = ends(events)
    assert len(ended) == len(calls)
    num_failed = 0
    for number, one in enumerate(calls):
        wanted, reason = alone(one)
        got = tokens(events, str(number))
        if ended[str(number)].reason == "failed":
            num_failed += 1
            assert got == wanted[: len(got)]
        else:
            assert (got, ended[str(number)].reason) == (wanted, reason)
    # a failed step has four rows at most
    assert num_failed <= 4 * sum(what in joined.said for what in joined.errors)
