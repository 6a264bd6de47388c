"""The fronts' overhead is measured as it says: a small run, and what it makes of times."""

import asyncio
from typing import Any

import pytest

from gptj_serve.benchmark.front import overhead as front
from gptj_serve.benchmark.targets.event_client import Connection, TimedExchange
from support.server import least


@pytest.mark.parametrize("name", ["http", "mms"])
def test_a_small_run(name: str) -> None:
    # its parts take time, and far less than the tokens
    assert least(lambda: longest_median_ms(name), 1000) < 1000


def longest_median_ms(name: str) -> float:
    """Of all that a small run measures."""
    plan = front.Plan(num_calls=2, num_rounds=1, num_tokens=5, num_together=3, stream_s=0.2)
    report = front.measure(name, plan)
    medians_ms = []
    for kind, number in (("alone", 2), ("together", 3)):
        assert list(report[kind]) == ["socket", name]
        assert all(one["num"] == number for one in report[kind].values())
        medians_ms.append(report[kind][name]["median_ms"])
    if name == "http":
        for schema in ("tgi", "openai"):
            assert report["streams"][schema]["num"] == 3 * 20
            medians_ms.append(report["streams"][schema]["median_ms"])
            assert report["streams"][schema]["front_cpu_us_a_token"] >= 0
    else:
        assert "streams" not in report
    assert min(medians_ms) > 0
    return max(medians_ms)


def test_what_a_call_adds_is_its_time_less_the_engines() -> None:
    times = {"a": {"received_s": 100.0, "sent_s": [100.5, 101.0]}}
    assert front.added_ms(front.Called("a", 1.25), times) == pytest.approx(250)


def test_lateness_counts_from_the_engines_message() -> None:
    times = {"a": {"received_s": 0.0, "sent_s": [1.0, 2.0]}}
    exchange = TimedExchange(0.0, "a", 200, 9.0, [1.001, 2.003, 2.5])
    found = front.lateness([exchange], times)
    assert (found["num"], found["median_ms"], found["max_ms"]) == (2, 2.0, 3.0)
    exchange.event_s = [1.001]
    with pytest.raises(RuntimeError, match="1 events came of 2 tokens"):
        front.lateness([exchange], times)


class Nowhere(asyncio.Transport):
    """Takes what is written."""

    def write(self, data: Any) -> None:
        assert data.startswith(b"POST ")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_counted_however_they_are_cut(size: int) -> None:
    head = b"HTTP/1.1 200 OK\r\nX-Request-Id: r\r\ncontent-type: text/event-stream\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    body = b"9\r\ndata: 1\n\n\r\n12\r\ndata: 2\n\ndata: 3\n\n\r\n0\r\n\r\n"

    async def exchange() -> TimedExchange:
        connection = Connection("localhost")
        connection.connection_made(Nowhere())
        asked = asyncio.create_task(connection.ask({}, "r"))
        await asyncio.sleep(0)
        for start in range(0, len(head + body), size):
            assert not asked.done()
            connection.data_received((head + body)[start : start + size])
        return await asked

    found = asyncio.run(exchange())
    assert (found.request_id, found.status, len(found.event_s)) == ("r", 200, 3)
    assert found.body == b"data: 1\n\ndata: 2\n\ndata: 3\n\n"
