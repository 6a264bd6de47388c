"""What the engine says of itself."""

import json
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from gptj_serve import wire
from gptj_serve.engine import server as server_module
from gptj_serve.engine.engine import Engine
from gptj_serve.engine.scheduler import Limits, Sampled
from gptj_serve.engine.server import EngineServer
from gptj_serve.engine.static.runner import StaticRunner
from gptj_serve.engine.static.scheduler import Decode, Prefill, StaticScheduler
from gptj_serve.engine.step_loop import StepLoop
from gptj_serve.errors import InternalError
from gptj_serve.request import EngineStats, GenerationRequest, ModelInfo, SamplingParams
from support.engine_socket import connected, read_stats
from support.server import WAIT_TIMEOUT_S, until


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
    scheduler.commit(step, [[Sampled(9)], [Sampled(1)], [Sampled(1)], [Sampled(1)]], 1.0)
    assert scheduler.num_cache_tokens == 16
    scheduler.abort((0, "b"), 2.0)
    step = scheduler.schedule(2.0)
    assert isinstance(step, Decode)
    scheduler.commit(step, [[], [], [Sampled(error=InternalError("x"))], [Sampled(1)]], 3.0)
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
            started_s = time.monotonic()
            front.sendall(wire.watch())
            told = [read_stats(lines) for _ in range(3)]
            assert [one.num_steps for one in told] == [1, 2, 3]
            assert time.monotonic() - started_s >= 1.5 * wire.STATS_INTERVAL_S
            lines.close()
    finally:
        server.close()


INFO = ModelInfo("fake", "/model", 32, 4, 10, (9,))


def test_columns_stay_when_the_longest_row_ends() -> None:
    scheduler = StaticScheduler(max_batch_size=4, max_context=32, vocab_size=10, max_queue=8, batch_wait_s=0)
    long = GenerationRequest("long", (1,) * 20, SamplingParams(1))
    scheduler.add([((0, "long"), long), ((0, "short"), request("short", 5))], 0.0)
    step = scheduler.schedule(0.0)
    assert isinstance(step, Prefill)
    scheduler.commit(step, [[Sampled(1)], [Sampled(1)]], 0.0)
    assert (scheduler.num_running, scheduler.num_cache_tokens) == (1, 2 * 21)


class StuckBackend:
    """Blocks in its first step until it is let go."""

    name = "stuck"
    limits = Limits(4, 32, 10)

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        self.entered.set()
        assert self.go_on.wait(WAIT_TIMEOUT_S)
        return torch.zeros(len(prompts), 10)

    def decode(self, token_ids: Sequence[int]) -> torch.Tensor:
        return torch.zeros(len(token_ids), 10)

    def reset(self) -> None:
        pass


def test_a_blocked_step_loop_delays_no_statistics(tmp_path: Path) -> None:
    backend = StuckBackend()
    scheduler = StaticScheduler(max_batch_size=4, max_context=32, vocab_size=10, max_queue=8, batch_wait_s=0)
    server = EngineServer(tmp_path / "engine.sock", INFO)
    engine = Engine(
        server,
        scheduler,
        StepLoop(scheduler, StaticRunner(backend, torch.device("cpu")), steps_ahead=0),
        drain_timeout_s=5,
    )
    server.stats = engine.stats
    server.start()
    loop = threading.Thread(target=engine.run, daemon=True)
    loop.start()
    try:
        with connected(tmp_path / "engine.sock") as (front, lines):
            front.sendall(wire.submit([request("a", 2)]))
            assert backend.entered.wait(WAIT_TIMEOUT_S)
            front.sendall(wire.watch())
            told = [read_stats(lines) for _ in range(3)]
            assert [(one.num_running, one.num_steps, one.cache_tokens) for one in told] == [(1, 0, 3)] * 3
            assert told[2].step_age_s - told[0].step_age_s >= 1.5 * wire.STATS_INTERVAL_S
            backend.go_on.set()
            until(lambda: engine.stats().num_steps == 2)  # counted last
            done = engine.stats()
            assert (done.num_finished, done.num_prompt_tokens, done.num_generated_tokens) == (1, 3, 2)
            assert (done.cache_tokens, done.cache_capacity_tokens, done.is_draining) == (0, 128, False)
            engine.drain()
            assert engine.stats().is_draining
    finally:
        backend.go_on.set()
        engine.drain()
        loop.join(timeout=WAIT_TIMEOUT_S)
        engine.close()
    assert not loop.is_alive()


def test_one_watch_a_connection_and_it_ends_with_it(tmp_path: Path) -> None:
    server = EngineServer(tmp_path / "engine.sock", INFO)
    server.start()
    try:
        with connected(tmp_path / "engine.sock") as (front, lines):
            started_s = time.monotonic()
            front.sendall(wire.watch() * 3)
            for _ in range(4):
                lines.readline()
            assert time.monotonic() - started_s >= 2.5 * wire.STATS_INTERVAL_S
            assert len(server._watches) == 1
        until(lambda: not server._watches)
    finally:
        server.close()


def test_a_watching_front_that_does_not_read_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_UNSENT_BYTES", 1000)
    monkeypatch.setattr(wire, "STATS_INTERVAL_S", 0.0001)
    server = EngineServer(tmp_path / "engine.sock", INFO)
    server.start()
    try:
        with connected(tmp_path / "engine.sock") as (front, _):
            front.sendall(wire.watch())
            until(lambda: not server._writers)
    finally:
        server.close()
