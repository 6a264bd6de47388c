"""What goes over the engine's socket comes out as it went in."""

import json
import math
from typing import Any

import pytest

from gptj_serve import errors, wire
from gptj_serve.request import (
    EndEvent,
    EngineStats,
    GenerationRequest,
    ModelInfo,
    SamplingParams,
    Timings,
    TokenEvent,
)

REQUEST = GenerationRequest(
    "a/0",
    (1, 2, 3),
    SamplingParams(
        5,
        do_sample=True,
        temperature=0.7,
        logit_bias=((1, 2.5),),
        bad_words=((1, 2), (3,)),
        suppress_tokens=(4,),
        seed=2**64 - 1,
        sequence_index=3,
    ),
    (50256,),
    logprobs=True,
    timeout_s=1.5,
)


def test_a_request_survives() -> None:
    message = wire.read_from_front(wire.submit([REQUEST]))
    assert isinstance(message, wire.Submit)
    (again,) = message.requests
    assert again == REQUEST
    assert hash(again)  # lists would have slipped in for tuples
    assert again.sampling.changes_scores


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        ({}, False),
        ({"min_new_tokens": 3, "temperature": 0.5, "top_k": 3, "seed": 4}, False),
        ({"do_sample": True}, True),
        ({"bad_words": ((1,),)}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"no_repeat_ngram_size": 2}, True),
        ({"begin_suppress_tokens": (1,)}, True),
    ],
)
def test_what_changes_scores(given: dict[str, Any], changes: bool) -> None:
    assert SamplingParams(5, **given).changes_scores is changes


def test_model_info_survives() -> None:
    defaults = {"repetition_penalty": 1.1, "bad_words_ids": ((1, 2), (3,))}
    info = ModelInfo("hf", "/m", 2048, 8, 50400, (1, 2), defaults=defaults)
    assert wire.read_hello(wire.hello(info)) == info


def test_events_survive_and_a_token_comes_before_the_end() -> None:
    events = [
        EndEvent("a", "length", None, Timings(0.1, 0.2, 0.3)),
        TokenEvent("a", 7, -0.5),
        TokenEvent("b", 8),
    ]
    assert wire.read_from_engine(wire.events(events)) == wire.Events([events[1], events[2]], [events[0]])


@pytest.mark.parametrize(
    "error_class",
    [
        errors.BadRequest,
        errors.PayloadTooLarge,
        errors.UnsupportedMediaType,
        errors.Overloaded,
        errors.InternalError,
        errors.Unavailable,
        errors.DeadlinePassed,
    ],
)
def test_errors_keep_their_status(error_class: type[errors.ServingError]) -> None:
    line = wire.events([EndEvent("a", "failed", error_class("why", retry_after_s=3))])
    message = wire.read_from_engine(line)
    assert isinstance(message, wire.Events)
    error = message.ends[0].error
    assert error is not None
    assert type(error) is error_class
    assert (error.message, error.retry_after_s, error.status) == ("why", 3, error_class.status)


def test_a_line_is_one_line() -> None:
    line = wire.events([EndEvent("a", "failed", errors.BadRequest("two\nlines"))])
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


@pytest.mark.parametrize(
    "line", [b"[]\n", b'{"a": 1}\n', b'{"type": "other"}\n', b"nonsense\n", wire.watch()[:-3]]
)
def test_nonsense_is_a_value_error(line: bytes) -> None:
    for read in (wire.read_from_front, wire.read_hello, wire.read_from_engine):
        with pytest.raises(ValueError, match=r"JSON|Expected|missing|Invalid|truncated"):
            read(line)


def test_a_front_is_told_nothing_that_only_the_engine_is() -> None:
    with pytest.raises(ValueError, match="Invalid value 'watch'"):
        wire.read_from_engine(wire.watch())
    with pytest.raises(ValueError, match="Invalid value 'stats'"):
        wire.read_from_front(wire.stats(EngineStats()))


def test_request_bodies_name_the_kind_and_the_request() -> None:
    body = errors.BadRequest("top_k: must be ...").to_body("id-1")
    assert json.loads(json.dumps(body)) == {
        "error": "top_k: must be ...",
        "error_type": "validation",
        "request_id": "id-1",
    }


def test_what_openais_schema_needs_survives() -> None:
    sampling = SamplingParams(
        5, presence_penalty=0.5, frequency_penalty=-1.0, logit_bias=((3, 1.5), (4, -2.0))
    )
    request = GenerationRequest("a", (1, 2), sampling, logprobs=True, num_top_logprobs=2)
    assert wire.read_from_front(wire.submit([request])) == wire.Submit((request,))
    token = TokenEvent("a", 3, -0.5, ((3, -0.5), (4, -1.5)))
    assert wire.read_from_engine(wire.events([token])) == wire.Events([token], [])


def test_a_log_probability_that_json_cannot_say_is_none() -> None:
    token = TokenEvent("a", 3, -math.inf, ((4, -0.5), (3, -math.inf)))
    told = TokenEvent("a", 3, None, ((4, -0.5), (3, None)))
    assert wire.read_from_engine(wire.events([token])) == wire.Events([told], [])


def test_statistics_survive() -> None:
    stats = EngineStats(num_waiting=1, step_age_s=0.25, cache_capacity_tokens=2048, is_draining=True)
    assert wire.read_from_engine(wire.stats(stats)) == wire.Stats(stats)
