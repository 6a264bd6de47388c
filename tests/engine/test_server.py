"""Continuous batching in the real engine: through the socket, with a runner that has no model."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from gptj_serve import wire
from gptj_serve.demo import MODEL_DIR
from gptj_serve.engine.build import join_continuous
from gptj_serve.engine.engine import Engine
from gptj_serve.models.model_dir import find_checkpoint
from gptj_serve.request import EndEvent, GenerationRequest, TokenEvent
from gptj_serve.settings import Settings
from support.engine_socket import connected, read_events
from support.fake_runner import FakeRunner, alone, limits, request
from support.server import WAIT_TIMEOUT_S, until

Events = list[TokenEvent | EndEvent]


class PacedRunner(FakeRunner):
    """Its steps end when the test lets them."""

    def __init__(self) -> None:
        super().__init__(limits(max_context=200, num_blocks=60))
        self.may_end = threading.Semaphore(0)
        self.before_results = lambda _: self.wait()

    def wait(self) -> None:
        assert self.may_end.acquire(timeout=WAIT_TIMEOUT_S)


@contextmanager
def running(runner: FakeRunner, directory: Path, **environ: str) -> Iterator[tuple[Engine, Path]]:
    path = directory / "engine.sock"
    settings = Settings.from_env({"GPTJ_MODEL_DIR": str(MODEL_DIR), **environ})
    engine, info = join_continuous(runner, settings, find_checkpoint(MODEL_DIR), path)
    assert (info.engine, info.max_batch_size) == ("fake", runner.limits.max_batch_size)
    loop = threading.Thread(target=engine.run, daemon=True)
    loop.start()
    try:
        yield engine, path
    finally:
        engine.drain()
        if isinstance(runner, PacedRunner):
            runner.may_end.release(10_000)
        loop.join(timeout=WAIT_TIMEOUT_S)
        engine.close()
    assert not loop.is_alive()


def named(one: GenerationRequest, name: str) -> GenerationRequest:
    return replace(one, request_id=name)


def read_until_ended(lines: BinaryIO, num_ends: int) -> Events:
    events: Events = []
    while sum(isinstance(event, EndEvent) for event in events) < num_ends:
        events += read_events(lines)
    return events


def test_many_calls_at_once_get_what_they_get_alone(tmp_path: Path) -> None:
    runner = FakeRunner(limits(num_blocks=9))
    asked = {f"r{i}": request(1 + i % 9, 1 + i % 13, first=i, eos=i % 2 == 0) for i in range(60)}
    with running(runner, tmp_path) as (engine, path), connected(path) as (front, lines):
        for name, one in asked.items():
            front.sendall(wire.submit([named(one, name)]))
        events = read_until_ended(lines, len(asked))
        stats = engine.stats()
    ended = {event.request_id: event for event in events if isinstance(event, EndEvent)}
    for name, one in asked.items():
        own = [
            event.token_id for event in events if isinstance(event, TokenEvent) and event.request_id == name
        ]
        assert (own, ended[name].reason) == alone(one)
    assert stats.num_finished == len(asked)
    assert stats.num_preempted > 0
    assert (stats.num_running, stats.num_waiting, stats.cache_tokens) == (0, 0, 0)
    assert stats.cache_capacity_tokens == 36


@pytest.mark.parametrize("leaves", [False, True], ids=["aborts", "disconnects"])
def test_cancelling_frees_a_sequence_within_one_step(tmp_path: Path, leaves: bool) -> None:
    runner = PacedRunner()
    with running(runner, tmp_path) as (engine, path), connected(path) as (stays, _):
        with connected(path) as (front, _):
            stays.sendall(wire.submit([named(request(2, 150), "stays")]))
            front.sendall(wire.submit([named(request(4, 150), "goes")]))
            until(lambda: engine.stats().num_running + engine._server.inbox.qsize() == 2)
            runner.may_end.release(5)
            # the engine has read its inbox and waits for the sixth step
            until(lambda: len(runner.steps) == 7)
            if not leaves:
                front.sendall(wire.abort("goes"))
                until(lambda: not engine._server.inbox.empty())
        if leaves:
            until(lambda: not engine._server.inbox.empty())
        before = engine.stats()
        assert (before.num_steps, before.num_running, before.num_cancelled) == (5, 2, 0)
        runner.may_end.release(1)
        until(lambda: engine.stats().num_cancelled == 1)
        after = engine.stats()
        assert (after.num_steps, after.num_running) == (6, 1)
        assert after.cache_tokens < before.cache_tokens
        until(lambda: len(runner.steps) == 8)
        assert [row.request.request_id for row in runner.steps[-1].decodes] == ["stays"]


def test_a_request_joins_while_others_run(tmp_path: Path) -> None:
    runner = PacedRunner()
    with running(runner, tmp_path) as (engine, path), connected(path) as (front, _):
        front.sendall(wire.submit([named(request(2, 150), "first")]))
        runner.may_end.release(3)
        until(lambda: len(runner.steps) == 5)
        front.sendall(wire.submit([named(request(3, 150), "second")]))
        until(lambda: not engine._server.inbox.empty())
        runner.may_end.release(1)
        until(lambda: len(runner.steps) == 6)
        last = runner.steps[-1]
        assert [row.request.request_id for row in last.prefills] == ["second"]
        assert [row.request.request_id for row in last.decodes] == ["first"]


def test_draining_finishes_what_runs(tmp_path: Path) -> None:
    runner = FakeRunner(limits())
    with running(runner, tmp_path) as (engine, path), connected(path) as (front, lines):
        front.sendall(wire.submit([named(request(3, 20), "a")]))
        until(lambda: engine.stats().num_generated_tokens > 0)
        engine.drain()
        events = read_until_ended(lines, 1)
        assert events[-1] == EndEvent("a", "length", None, events[-1].timings)  # type: ignore[union-attr]
