"""Stop strings are found whatever pieces the text comes in, and never reach the answer."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from gptj_serve.serving.stopping import StopFinder

# two letters make matches, near matches and overlaps likely
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)
PIECES = st.lists(st.text("ab", max_size=4), max_size=8)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The plain way: at the first end of a stop string, cut where the longest that ends there begins."""
    for end in range(len(text) + 1):
        lengths = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


@settings(max_examples=500)
@given(PIECES, STOPS)
def test_pieces_make_no_difference(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    text = "".join([finder.push(piece) for piece in pieces] + [finder.finish()])
    assert (text, finder.found) == cut("".join(pieces), stops)
    assert not any(stop in text for stop in stops)


@settings(max_examples=300)
@given(PIECES, STOPS)
def test_no_more_is_held_back_than_could_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    seen = released = ""
    for piece in pieces:
        seen += piece
        released += finder.push(piece)
        if finder.found:
            return
        held = seen[len(released) :]
        assert released + held == seen
        assert not held or any(stop.startswith(held) for stop in stops)


@settings(max_examples=500)
@given(st.lists(st.tuples(st.text("ab", max_size=4), st.booleans()), max_size=8), STOPS, st.booleans())
def test_hidden_text_is_looked_at_and_does_not_come_out(
    pieces: list[tuple[str, bool]], stops: list[str], keep_stop: bool
) -> None:
    finder = StopFinder(stops, keep_stop)
    text = "".join([finder.push(piece, hidden) for piece, hidden in pieces] + [finder.finish()])
    whole = "".join(piece for piece, _ in pieces)
    before, found = cut(whole, stops)
    is_hidden = [hidden for piece, hidden in pieces for _ in piece]
    expected = "".join(char for char, hidden in zip(before, is_hidden, strict=False) if not hidden)
    if keep_stop and found:
        # the first to be complete is the longest of those that begin here and end where it ends
        ends = [len(before) + len(stop) for stop in stops if whole[len(before) :].startswith(stop)]
        expected += whole[len(before) : next(end for end in sorted(ends) if cut(whole[:end], stops)[1])]
    assert (text, finder.found) == (expected, found)


def test_text_before_the_stop_is_kept_and_text_after_it_dropped() -> None:
    finder = StopFinder(["\n\nQ:"])
    assert finder.push("yes.\n") == "yes."
    assert finder.push("\n") == ""
    assert finder.push("Q: more") == "\n\nQ:"[:0]
    assert finder.found
    assert finder.push("even more") == ""
    assert finder.finish() == ""


def test_a_near_match_comes_out_at_the_end() -> None:
    finder = StopFinder(["END"])
    assert finder.push("the EN") == "the "
    assert finder.finish() == "EN"
    assert not finder.found


def test_without_stops_everything_passes() -> None:
    assert StopFinder([]).push("text") == "text"


def test_the_worst_stop_strings_stay_cheap() -> None:
    """Re-scanning would take the product of text and stop lengths: 16 x 1000 x 4000 steps."""
    finder = StopFinder(["a" * 999 + chr(ord("b") + index) for index in range(16)])
    start_s = time.process_time()
    released = "".join(finder.push("aaaa") for _ in range(1000)) + finder.finish()
    assert released == "a" * 4000
    assert time.process_time() - start_s < 2
