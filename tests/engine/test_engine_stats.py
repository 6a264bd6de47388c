"""What the engine says of itself."""

import json
import socket
import time
from pathlib import Path

from gptj_serve import wire
from gptj_serve.engine.scheduler import Decode, Prefill, Sampled, StaticScheduler
from gptj_serve.engine.server import EngineServer
from gptj_serve.errors import InternalError
from gptj_serve.request import EngineStats, GenerationRequest, ModelInfo, SamplingParams


def request(name: str, num_new: int, timeout_s: float | None = None) -> GenerationRequest:
    return GenerationRequest(
        name, (1, 2, 3), SamplingParams(num_new), eos_token_ids=(9,), timeout_s=timeout_s
    )


def test_the_scheduler_counts_every_end_once() -> None:
    scheduler = StaticScheduler(max_batch_size=4, max_context=32, vocab_size=10, max_queue=8, batch_wait_s=0)
    group = [
        ((0, name), request(name, 3, timeout_s))
        for name, timeout_s in zip("abcd", (None, None, None, 5), strict=True)
    ]
    scheduler.add(group, 0.0)
    step = scheduler.schedule(0.0)
    assert isinstance(step, Prefill)
    assert (scheduler.counters.prompt_tokens, scheduler.num_cache_tokens) == (12, 12)
    # "a" ends by itself, "b" is aborted, "c" fails, the time of "d" passes
    scheduler.commit(step, [Sampled(9), Sampled(1), Sampled(1), Sampled(1)], 1.0)
    assert scheduler.num_cache_tokens == 16
    scheduler.abort((0, "b"), 2.0)
    step = scheduler.schedule(2.0)
    assert isinstance(step, Decode)
    scheduler.commit(step, [None, None, Sampled(error=InternalError("x")), Sampled(1)], 3.0)
    scheduler.expire(10.0)
    counters = scheduler.counters
    assert (counters.finished, counters.cancelled, counters.failed) == (1, 1, 2)
    assert counters.generated_tokens == 5
    assert scheduler.num_cache_tokens == 0
    assert scheduler.is_idle


def test_a_front_that_watches_is_told_again_and_again(tmp_path: Path) -> None:
    """Nobody runs a step here: the socket's thread answers by itself."""
    server = EngineServer(tmp_path / "engine.sock", ModelInfo("fake", "/model", 32, 4, 10, (9,)))
    asked = iter(range(1, 100))
    server.stats = lambda: EngineStats(num_steps=next(asked))
    server.start()
    try:
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(str(tmp_path / "engine.sock"))
            lines = front.makefile("rb")
            assert json.loads(lines.readline())["type"] == "hello"
            front.sendall(wire.watch())
            started_s = time.monotonic()
            told = [wire.read_stats(wire.read(lines.readline())) for _ in range(3)]
            assert [one.num_steps for one in told] == [1, 2, 3]
            assert time.monotonic() - started_s >= 1.5 * wire.STATS_INTERVAL_S
            lines.close()
    finally:
        server.close()
