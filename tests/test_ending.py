"""How the service ends: signals, drains, deadlines, and processes that die."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from gptj_serve.engine.failures import MAX_FAILED_STEPS
from support.server import (
    END_TIMEOUT_S,
    IN_THE_MIDDLE,
    WITHOUT_MODEL,
    WITHOUT_MODEL_DIR,
    Answer,
    Server,
    held_in_flight,
    in_flight,
    least,
    nothing_left,
    python_path,
    serving,
    until,
)

LONG = {"max_new_tokens": 1500, "min_new_tokens": 1500}
"""Seconds for the engine without a model."""


def test_when_the_engine_is_killed_clients_are_told_and_all_ends() -> None:
    assert least(seconds_until_told, 2) < 2


def seconds_until_told() -> float:
    """How long a client waits for its answer after the engine was killed."""
    with serving(**WITHOUT_MODEL) as server:
        everything = server.descendants()
        with in_flight(server, **LONG, details=True) as request:
            killed_s = time.monotonic()
            server.engine().kill()
            answer = request.result(END_TIMEOUT_S)
            told_s = time.monotonic() - killed_s
        assert answer.status == 503
        assert answer.json["error_type"] == "unavailable"
        assert b"Traceback" not in answer.body
        assert server.wait_for_exit() != 0
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by the moment
            server.get("/ping")
        assert nothing_left(everything)
    return told_s


BREAKABLE = """
import os
from engine_without_model import Runner

whole = Runner.launch

def breakable(self, step):
    if os.path.exists({flag!r}):
        raise KeyError("on purpose")
    return whole(self, step)

Runner.launch = breakable
"""


def test_an_engine_that_only_fails_ends_and_one_that_fails_at_times_does_not(tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(BREAKABLE.format(flag=str(flag)))
    with serving(PYTHONPATH=python_path(tmp_path, WITHOUT_MODEL_DIR), GPTJ_FRONT="http") as server:
        everything = server.descendants()
        for _ in range(2):
            flag.touch()
            for _ in range(MAX_FAILED_STEPS - 1):
                answer = server.generate("In", max_new_tokens=3)
                assert (answer.status, answer.json["error_type"]) == (500, "internal")
            flag.unlink()
            assert server.generate("In", max_new_tokens=3).status == 200
        flag.touch()
        answers = [server.generate("In", max_new_tokens=3) for _ in range(MAX_FAILED_STEPS)]
        assert {answer.status for answer in answers} == {500}
        assert server.wait_for_exit() == 70
        assert nothing_left(everything)
    (event,) = server.events("backend_dead")
    assert f"{MAX_FAILED_STEPS} steps have failed" in event["message"]
    assert "on purpose" not in "".join(answer.body.decode() for answer in answers)


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones() -> None:
    long = {"GPTJ_DRAIN_TIMEOUT_S": "100", "GPTJ_REQUEST_TIMEOUT_S": "100"}
    with serving(**WITHOUT_MODEL, **long) as server:
        everything = server.descendants()
        with in_flight(server, max_new_tokens=300, min_new_tokens=300, details=True) as request:
            server.signal(signal.SIGTERM)
            server.wait_for("stopping")
            until(lambda: server.figures().is_draining)
            # what comes in the very step in which it heard that may still be let in
            num_steps = server.figures().num_steps
            until(lambda: server.figures().num_steps >= num_steps + 2)
            late = server.generate("In", max_new_tokens=1)
            answer = request.result()
        assert answer.status == 200
        assert answer.json[0]["details"]["generated_tokens"] == 300
        assert (late.status, late.json["error_type"]) == (503, "unavailable")
        assert server.wait_for_exit() == 0
        assert nothing_left(everything)


def stop_everything(server: Server) -> None:
    """SIGTERM to every process, as systemd does it, the first one last: it hears of it after all others."""
    for process in reversed([psutil.Process(server.process.pid), *server.descendants()]):
        process.terminate()


@pytest.mark.parametrize(
    ("module", "front"), [("gptj_serve", "mms"), ("gptj_serve", "http"), ("gptj_serve.run_local", "http")]
)
def test_a_signal_to_every_process_lets_running_requests_finish(module: str, front: str) -> None:
    env = {**WITHOUT_MODEL, "GPTJ_FRONT": front, "GPTJ_DRAIN_TIMEOUT_S": "100"}
    with contextlib.closing(Server(module, **env)) as server:
        server.wait_until_ready()
        everything = server.descendants()
        with held_in_flight(server) as request:
            stop_everything(server)
            server.wait_for("stopping")
        answer = request.result()
        assert answer.status == 200
        assert answer.json[0]["details"]["generated_tokens"] == IN_THE_MIDDLE["max_new_tokens"]
        assert server.wait_for_exit() == 0
        assert len(server.events("stopping")) == 1
        assert nothing_left(everything)


def test_a_request_that_outlasts_the_drain_is_told_so() -> None:
    with serving(**WITHOUT_MODEL, GPTJ_FRONT="http", GPTJ_DRAIN_TIMEOUT_S="1") as server:
        with in_flight(server, **LONG, details=True) as request:
            server.signal(signal.SIGTERM)
            answer = request.result(END_TIMEOUT_S)
        assert answer.status == 503
        assert "shutting down" in answer.json["error"]
        assert server.wait_for_exit() == 0


def test_when_the_front_dies_all_ends() -> None:
    with serving(**WITHOUT_MODEL) as server:
        (front,) = server.processes_of("com.amazonaws.ml.mms.ModelServer")
        all_end_with(front, server)


def test_when_the_fronts_workers_are_lost_all_ends() -> None:
    with serving(**WITHOUT_MODEL) as server:
        workers = [
            one
            for one in server.descendants()
            if any("model_service_worker" in word for word in one.cmdline())
        ]
        (parent,) = [one for one in workers if one.ppid() not in {other.pid for other in workers}]
        all_end_with(parent, server)


def all_end_with(process: psutil.Process, server: Server) -> None:
    everything = server.descendants()
    process.kill()
    assert server.wait_for_exit() != 0
    assert nothing_left(everything)


def test_when_serve_is_killed_nothing_stays_behind() -> None:
    with serving(**WITHOUT_MODEL) as server:
        everything = server.descendants()
        server.signal(signal.SIGKILL)
        assert nothing_left(everything)


def test_the_deadline_of_a_request_is_kept() -> None:
    env = {"GPTJ_REQUEST_TIMEOUT_S": "1", "GPTJ_MAX_BATCH_SIZE": "1", "GPTJ_MAX_QUEUE": "0"}
    with serving(**WITHOUT_MODEL, **env) as server:

        def seconds_until_late() -> float:
            answer = server.generate("And", **LONG)
            assert (answer.status, answer.json["error_type"]) == (504, "timeout")
            return answer.seconds

        assert least(seconds_until_late, 3) < 3

        def is_answered() -> bool:
            answer = server.generate("And", max_new_tokens=2)
            assert answer.status in (200, 504)  # a second may be over soon, but there is room
            return answer.status == 200

        until(is_answered)  # the late one's sequence is gone
        # and what is more than the queue holds is refused, if it comes within that second
        refused: list[Answer] = []
        until(lambda: refused.extend(one for one in _at_once(server, 3) if one.status == 429) or refused)
        assert int(refused[0].headers["retry-after"]) >= 1


def _at_once(server: Server, count: int) -> list[Answer]:
    barrier = threading.Barrier(count)

    def ask(_: int) -> Answer:
        barrier.wait()
        return server.generate("And", **LONG)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, range(count)))


@pytest.mark.parametrize(("signals", "front"), [(1, "mms"), (2, "http")])
def test_a_stuck_engine_cannot_hold_up_the_end(signals: int, front: str) -> None:
    with serving(**WITHOUT_MODEL, GPTJ_FRONT=front, GPTJ_DRAIN_TIMEOUT_S="1") as server:
        everything = server.descendants()
        with in_flight(server, **LONG, details=True) as request:
            server.engine().suspend()
            for _ in range(signals):
                server.signal(signal.SIGTERM)
                time.sleep(0.2)
            answer = request.result(END_TIMEOUT_S)
        assert (answer.status, answer.json["error_type"]) == (503, "unavailable")
        assert server.wait_for_exit() != 0
        assert nothing_left(everything)


@contextlib.contextmanager
def sigint_ignored() -> Iterator[None]:
    """What is started meanwhile inherits it, as in the background of a shell that runs a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("gptj_serve", signal.SIGINT),
        ("gptj_serve.run_local", signal.SIGINT),
        ("gptj_serve.run_local", signal.SIGTERM),
    ],
)
def test_in_the_background_a_signal_ends_it(module: str, number: signal.Signals) -> None:
    with sigint_ignored():
        server = Server(module, **WITHOUT_MODEL, GPTJ_FRONT="http")
    with contextlib.closing(server):
        server.wait_until_ready()
        everything = server.descendants()
        server.signal(number)
        assert server.wait_for_exit() == 0
        assert nothing_left(everything)
