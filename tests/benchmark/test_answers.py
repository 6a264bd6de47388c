"""Prompts of exact lengths, and what is made of answers."""

import asyncio
from collections.abc import Callable

import pytest
from measurements import run

from gptj_serve import demo
from gptj_serve.benchmark.results import Cell, Level
from gptj_serve.benchmark.run.prompts import WORDS, Vocabulary, calibrate
from gptj_serve.benchmark.run.schedule import PlannedRequest
from gptj_serve.benchmark.run.session import TargetGone, as_run, check_alive
from gptj_serve.benchmark.targets import completions
from gptj_serve.benchmark.targets.target import TimedAnswer
from gptj_serve.errors import StartupError
from gptj_serve.serving.text import Tokenizer

TOKENIZER = Tokenizer.load(demo.MODEL_DIR)


def calibrated(count: Callable[[str], int]) -> Vocabulary:
    async def count_tokens(text: str) -> int:
        return count(text)

    return asyncio.run(calibrate(count_tokens))


@pytest.mark.parametrize("num_tokens", [1, 50, 1000])
def test_prompts_have_exactly_so_many_tokens(num_tokens: int) -> None:
    words = calibrated(lambda text: len(TOKENIZER.encode(text)))
    assert words == Vocabulary(WORDS, 0)
    texts = {words.prompt(num_tokens, f"seed {number}") for number in range(20)}
    assert {len(TOKENIZER.encode(text)) for text in texts} == {num_tokens}
    assert len(texts) > 5  # a server that remembers prompts gains nothing
    assert words.prompt(num_tokens, "a") == words.prompt(num_tokens, "a")


def test_a_server_that_adds_tokens_is_allowed_for() -> None:
    words = calibrated(lambda text: len(TOKENIZER.encode(text)) + 2)
    assert words.num_added == 2
    assert len(TOKENIZER.encode(words.prompt(50, ""))) + 2 == 50


def test_one_word_is_enough() -> None:
    only_he = calibrated(lambda text: sum(1 if word == "he" else 2 for word in text.split()))
    assert only_he == Vocabulary(("he",), 0)
    with pytest.raises(StartupError, match="none of the words"):
        calibrated(len)


STEP = PlannedRequest("grid", "a", Cell(10, 3), 0)


def test_an_answer_of_another_length_is_a_problem() -> None:
    assert as_run(STEP, TimedAnswer(0.0, 1.0, 200, (), 10, 3)).problem is None
    assert (
        as_run(STEP, TimedAnswer(0.0, 1.0, 200, (), 10, 2)).problem == "10 tokens in and 2 out, not 10 and 3"
    )
    assert (
        as_run(STEP, TimedAnswer(0.0, 1.0, 200, (), 11, 3)).problem == "11 tokens in and 3 out, not 10 and 3"
    )
    uncounted = as_run(STEP, TimedAnswer(0.0, 1.0, 200))
    assert uncounted.problem == "None tokens in and None out, not 10 and 3"
    assert as_run(STEP, TimedAnswer(0.0, 1.0, 500, error="broken")).problem == "broken"


def test_times_of_a_stream() -> None:
    # the last event only says why it ended
    found = as_run(STEP, TimedAnswer(0.0, 1.0, 200, (0.2, 0.3, 0.4, 0.9), 10, 3))
    assert (found.ttft_s, found.tpot_s) == (0.2, pytest.approx(0.1))
    # fewer events than tokens: the time of all of them counts
    found = as_run(STEP, TimedAnswer(0.0, 1.0, 200, (0.2, 0.6), 10, 3))
    assert (found.ttft_s, found.tpot_s) == (0.2, pytest.approx(0.2))


def test_a_late_client_does_not_shorten_a_request() -> None:
    late = as_run(STEP, TimedAnswer(100.0, 1.0, 200, (), 10, 3), level=Level(rate=1.0), late_s=0.5)
    in_time = as_run(STEP, TimedAnswer(100.0, 1.0, 200, (), 10, 3), level=Level(rate=1.0))
    assert late.seconds == 1.5
    assert in_time.started_s - late.started_s == pytest.approx(0.5, abs=0.01)


def test_a_target_that_is_silent_three_times_is_given_up() -> None:
    silent = [run("a", 1.0, number, status=0, problem="refused") for number in range(3)]
    check_alive("a", silent[:2])
    check_alive("a", [*silent[:2], run("a", 1.0)])
    check_alive("a", [run("a", 1.0, status=500, problem="x"), *silent[:2]])
    with pytest.raises(TargetGone, match="a does not answer any more: refused"):
        check_alive("a", silent)


def test_a_front_without_its_engine_is_given_up() -> None:
    """It refuses so fast that all that is left would have failed before it ends."""
    gone = [run("a", 0.1, number, status=503, problem="no engine") for number in range(3)]
    with pytest.raises(TargetGone, match="no engine"):
        check_alive("a", gone)
    full = [run("a", 0.1, n, load="throughput", rate=9.0, status=503, problem="full") for n in range(3)]
    check_alive("a", full)


def chunk(text: str, usage: str = "null") -> bytes:
    return b'data: {"choices": [{"text": "%s"}], "usage": %s}\n\n' % (text.encode(), usage.encode())


COUNTS = '{"prompt_tokens": 5, "completion_tokens": 2}'
LAST = b'data: {"choices": [], "usage": %s}\n\n' % COUNTS.encode()
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("body", "expected", "num_other"),
    [
        (chunk("a") + chunk("b") + LAST + DONE, (5, 2), 2),
        (chunk("a") + chunk("b", COUNTS) + DONE, (5, 2), 1),
        (chunk("a") + DONE, (None, None), 1),
        (LAST + DONE, (5, 2), 2),
        (b"", (None, None), 0),
    ],
)
def test_the_end_of_a_stream(body: bytes, expected: tuple[int | None, int | None], num_other: int) -> None:
    document, number, error = completions.stream_end(body)
    assert (completions.usage(document), number, error) == (expected, num_other, None)


def test_errors_as_events_and_bodies() -> None:
    body = chunk("a") + b'data: {"error": {"message": "gone"}}\n\n'
    assert completions.stream_end(body)[2] == "gone"
    assert completions.error_text({"error": "plain"}) == "plain"
    assert completions.error_text(None) == "an answer that is no JSON object"
    assert completions.usage({"usage": {"prompt_tokens": True, "completion_tokens": "2"}}) == (None, None)
