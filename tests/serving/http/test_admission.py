"""Who is let in, and when who is refused should come back."""

import pytest

from gptj_serve.errors import Overloaded
from gptj_serve.serving.http.admission import WINDOW_S, Admission


def test_calls_are_let_in_whole_or_not_at_all() -> None:
    admission = Admission(4)
    admission.enter(3, 0.0)
    with pytest.raises(Overloaded, match="3 sequences run or wait, 2 more do not fit into the 4 that"):
        admission.enter(2, 0.0)
    admission.enter(1, 0.0)
    admission.leave(3, 1.0)
    admission.enter(2, 1.0)
    assert admission.num_inside == 3


def test_a_call_that_is_larger_than_the_queue_is_let_in_when_it_is_alone() -> None:
    admission = Admission(2)
    admission.enter(8, 0.0)
    with pytest.raises(Overloaded):
        admission.enter(1, 0.0)


def retry_after_s(admission: Admission, num_sequences: int, now_s: float) -> int | None:
    with pytest.raises(Overloaded) as caught:
        admission.enter(num_sequences, now_s)
    return caught.value.retry_after_s


def test_the_time_to_come_back_follows_the_rate() -> None:
    admission = Admission(10)
    admission.enter(10, 100.0)
    assert retry_after_s(admission, 1, 100.0) == WINDOW_S  # nothing has ended: there is no rate
    for second in range(10):
        admission.leave(2, 101.0 + second)
        admission.enter(2, 101.0 + second)
    # two a second, so half a second for one and four for eight
    assert retry_after_s(admission, 1, 111.0) == 1
    assert retry_after_s(admission, 8, 111.0) == 4
    # and what is long past counts no more
    assert retry_after_s(admission, 1, 1000.0) == WINDOW_S
