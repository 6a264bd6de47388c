"""How ``serve`` starts and ends: ready in time and not before, dead together, nothing left behind."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest

from gptj_serve import demo
from gptj_serve.engine.step_loop import MAX_FAILED_STEPS
from harness import (
    END_TIMEOUT_S,
    ROOT,
    START_TIMEOUT_S,
    Answer,
    Server,
    free_port,
    in_flight,
    least,
    nothing_left,
    python_path,
    serving,
    stopping_at,
    until,
)

LONG = {"max_new_tokens": 1500, "min_new_tokens": 1500}
"""Seconds of work for the demo model on a CPU."""


@pytest.mark.parametrize("front", ["mms", "http"])
def test_ping_answers_only_when_the_engine_is_ready(tmp_path: Path, front: str) -> None:
    with contextlib.closing(Server(TMPDIR=str(tmp_path), GPTJ_FRONT=front)) as server:
        until(lambda: _answers_ping(server), START_TIMEOUT_S)
        answered = datetime.now(timezone.utc)
        assert datetime.fromisoformat(server.wait_for("engine_ready")["time"]) <= answered
        # and it can answer at once
        assert server.generate("In", max_new_tokens=1).status == 200
        server.signal(signal.SIGTERM)
        assert server.wait_for_exit() == 0
    assert list(tmp_path.glob("gptj-*")) == []


def _answers_ping(server: Server) -> bool:
    with contextlib.suppress(OSError):
        return server.get("/ping").status == 200
    return False


def waiting_front(server: Server) -> psutil.Process:
    """The HTTP front while the engine still loads, when it has nothing left to do but wait."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        for process in server.processes_of("gptj_serve.serving.http"):
            if process.num_threads() == 1:
                before_s = process.cpu_times().user
                time.sleep(0.2)
                if process.cpu_times().user == before_s > 0:
                    return process
        time.sleep(0.02)
    raise AssertionError("no front is waiting")


@pytest.fixture
def held_engine(tmp_path: Path) -> Iterator[tuple[Server, psutil.Process]]:
    """A server with the HTTP front whose engine has stopped itself when it began to start, and that front."""
    stopping = stopping_at("gptj_serve.engine.__main__", tmp_path)
    with contextlib.closing(Server(GPTJ_FRONT="http", **stopping)) as server:
        until(lambda: server.processes_of("gptj_serve.engine"), START_TIMEOUT_S)
        until(lambda: server.engine().status() == psutil.STATUS_STOPPED, START_TIMEOUT_S)
        yield server, waiting_front(server)


def test_the_http_front_loads_beside_the_engine_and_listens_after_it(
    held_engine: tuple[Server, psutil.Process],
) -> None:
    server, front = held_engine
    with pytest.raises(ConnectionRefusedError):
        server.get("/ping")
    server.engine().resume()
    server.wait_until_ready()
    assert front in server.descendants()
    assert server.get("/ping").status == 200


def test_a_front_that_dies_while_it_waits_ends_all(
    held_engine: tuple[Server, psutil.Process],
) -> None:
    server, front = held_engine
    everything = server.descendants()
    front.kill()
    assert server.wait_for_exit() == 1
    assert "the front was killed" in server.events("not_started")[0]["message"]
    assert nothing_left(everything)


def test_a_front_that_waits_does_not_outlive_serve(
    held_engine: tuple[Server, psutil.Process],
) -> None:
    server, _ = held_engine
    everything = server.descendants()
    server.signal(signal.SIGTERM)
    assert server.wait_for_exit() == 0
    assert nothing_left(everything)


def test_when_the_engine_is_killed_clients_are_told_and_all_ends() -> None:
    assert least(seconds_until_told, 2) < 2


def seconds_until_told() -> float:
    """How long a client waits for its answer after the engine was killed."""
    with serving() as server:
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
import sys
if "gptj_serve.engine" in sys.orig_argv:
    import os
    from gptj_serve.engine.{module} import {backend}
    whole = {backend}.{method}

    def breakable(self, step):
        if os.path.exists({flag!r}):
            raise KeyError("on purpose")
        return whole(self, step)

    {backend}.{method} = breakable
"""


@pytest.mark.parametrize(
    ("engine", "module", "backend", "method"),
    [("fused", "fused.runner", "FusedRunner", "launch"), ("hf", "hf", "HfBackend", "decode")],
)
def test_an_engine_that_only_fails_ends_and_one_that_fails_at_times_does_not(
    tmp_path: Path, engine: str, module: str, backend: str, method: str
) -> None:
    flag = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(
        BREAKABLE.format(module=module, backend=backend, method=method, flag=str(flag))
    )
    with serving(PYTHONPATH=python_path(tmp_path), GPTJ_FRONT="http", GPTJ_ENGINE=engine) as server:
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
        assert [answer.status for answer in answers] == [500] * (MAX_FAILED_STEPS - 1) + [503]
        assert server.wait_for_exit() == 70
        assert nothing_left(everything)
    (event,) = server.events("backend_dead")
    assert f"{MAX_FAILED_STEPS} steps have failed" in event["message"]
    assert "on purpose" not in "".join(answer.body.decode() for answer in answers)


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones() -> None:
    with serving(GPTJ_DRAIN_TIMEOUT_S="100", GPTJ_REQUEST_TIMEOUT_S="100") as server:
        everything = server.descendants()
        with in_flight(server, **LONG, details=True) as request:
            server.signal(signal.SIGTERM)
            server.wait_for("stopping")
            until(lambda: server.figures().is_draining)
            # what comes in the very step in which it heard that may still be let in
            num_steps = server.figures().num_steps
            until(lambda: server.figures().num_steps >= num_steps + 2)
            late = server.generate("In", max_new_tokens=1)
            answer = request.result()
        assert answer.status == 200
        assert answer.json[0]["details"]["generated_tokens"] == LONG["max_new_tokens"]
        assert (late.status, late.json["error_type"]) == (503, "unavailable")
        assert server.wait_for_exit() == 0
        assert nothing_left(everything)


def test_a_request_that_outlasts_the_drain_is_told_so() -> None:
    with serving(GPTJ_DRAIN_TIMEOUT_S="1") as server:
        with in_flight(server, **LONG, details=True) as request:
            server.signal(signal.SIGTERM)
            answer = request.result(END_TIMEOUT_S)
        assert answer.status == 503
        assert "shutting down" in answer.json["error"]
        assert server.wait_for_exit() == 0


def test_when_the_front_dies_all_ends() -> None:
    with serving() as server:
        everything = server.descendants()
        (front,) = server.processes_of("com.amazonaws.ml.mms.ModelServer")
        front.kill()
        assert server.wait_for_exit() != 0
        assert nothing_left(everything)


def test_when_the_fronts_workers_are_lost_all_ends() -> None:
    with serving() as server:
        everything = server.descendants()
        pids = {one.pid for one in everything}
        (parent,) = [
            one
            for one in everything
            if any("model_service_worker" in word for word in one.cmdline())
            and not any("model_service_worker" in word for word in psutil.Process(one.ppid()).cmdline())
        ]
        assert parent.pid in pids
        parent.kill()
        assert server.wait_for_exit() != 0
        assert nothing_left(everything)


def test_when_serve_is_killed_nothing_stays_behind() -> None:
    with serving() as server:
        everything = server.descendants()
        server.signal(signal.SIGKILL)
        assert nothing_left(everything)


def test_the_deadline_of_a_request_is_kept() -> None:
    with serving(GPTJ_REQUEST_TIMEOUT_S="1", GPTJ_MAX_BATCH_SIZE="1", GPTJ_MAX_QUEUE="0") as server:

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


def test_a_nested_and_read_only_model_directory_is_served(tmp_path: Path) -> None:
    nested = tmp_path / "export" / "model-1"
    shutil.copytree(demo.MODEL_DIR, nested)
    for folder in (nested, nested.parent, tmp_path):
        folder.chmod(0o555)
    try:
        with serving(GPTJ_MODEL_DIR=str(tmp_path)) as server:
            assert server.generate("In the", max_new_tokens=3).status == 200
    finally:
        for folder in (tmp_path, nested.parent, nested):
            folder.chmod(0o755)


def _without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _of_another_kind(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(config | {"model_type": "llama", "architectures": ["L"]})
    )


def _truncated(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 1_000_000)


def _without_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_without_config, "config.json"),
        (_of_another_kind, "GPTJForCausalLM"),
        (_truncated, "model.safetensors"),
        (_without_tokenizer, "tokenizer.json"),
    ],
)
def test_a_broken_model_directory_is_said_and_nothing_starts(tmp_path: Path, harm, says: str) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, directory)
    harm(directory)
    with contextlib.closing(Server(GPTJ_MODEL_DIR=str(directory))) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        (event,) = server.events("not_started")
    assert says in event["message"]
    assert str(directory) in event["message"]
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"GPTJ_ENGINE": "deepspeed", "CUDA_VISIBLE_DEVICES": ""}, "no NVIDIA GPU"),
        ({"GPTJ_PORTS": "1"}, "did you mean GPTJ_PORT?"),
        ({"JAVA_HOME": "/nowhere"}, "JAVA_HOME='/nowhere': there is no bin/java in it"),
    ],
)
def test_a_setting_that_cannot_be_is_said(env: dict[str, str], says: str) -> None:
    with contextlib.closing(Server(**env)) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        assert says in server.events("not_started")[0]["message"]


def test_a_taken_port_is_said(server: Server) -> None:
    with contextlib.closing(Server(GPTJ_PORT=str(server.port))) as second:
        assert second.wait_for_exit(START_TIMEOUT_S) == 1
        message = second.events("not_started")[0]["message"]
    assert f"cannot listen on 127.0.0.1:{server.port}" in message
    assert "GPTJ_PORT" in message


@pytest.mark.parametrize("signals", [1, 2])
def test_a_stuck_engine_cannot_hold_up_the_end(signals: int) -> None:
    with serving(GPTJ_DRAIN_TIMEOUT_S="1") as server:
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


def test_a_signal_during_the_first_moments_is_not_lost(tmp_path: Path) -> None:
    with contextlib.closing(Server(**stopping_at("gptj_serve.launcher", tmp_path))) as server:
        process = psutil.Process(server.process.pid)
        until(lambda: process.status() == psutil.STATUS_STOPPED, START_TIMEOUT_S)
        assert _holds_back_sigterm(server.process.pid)
        server.signal(signal.SIGTERM)
        process.resume()
        assert server.wait_for_exit() == 0


def _holds_back_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    blocked = int(status.split("SigBlk:")[1].split()[0], 16)
    return bool(blocked >> (signal.SIGTERM - 1) & 1)


def test_a_front_whose_workers_cannot_start_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def model_fn(model_dir): raise RuntimeError('on purpose')")
    with contextlib.closing(Server(PYTHONPATH=python_path(tmp_path), SAGEMAKER_PROGRAM="broken")) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        assert "the front's workers" in server.events("not_started")[0]["message"]
        assert "on purpose" in server.log


def test_a_relative_model_directory_is_served() -> None:
    with serving(GPTJ_MODEL_DIR=str(demo.MODEL_DIR.relative_to(ROOT))) as server:
        assert server.generate("In the", max_new_tokens=3).status == 200


@pytest.mark.parametrize("on_terminal", [True, False])
def test_on_a_terminal_the_reason_is_said_in_plain_words_too(on_terminal: bool) -> None:
    reader, writer = pty.openpty() if on_terminal else os.pipe()
    done = subprocess.run(
        [sys.executable, "-m", "gptj_serve"],
        env={**os.environ, "GPTJ_MODEL_DIR": "/nowhere", "GPTJ_PORT": str(free_port())},
        stdout=subprocess.PIPE,
        stderr=writer,
        check=False,
    )
    os.close(writer)
    try:
        said = os.read(reader, 1000)
    except OSError:  # how a terminal ends
        said = b""
    os.close(reader)
    plain = "GPTJ_MODEL_DIR=/nowhere: no such directory"
    assert said.decode().splitlines() == ([plain] if on_terminal else [])
    assert json.loads(done.stdout.splitlines()[-1])["message"] == plain
    assert done.returncode == 1


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
        server = Server(module, GPTJ_FRONT="http")
    with contextlib.closing(server):
        server.wait_until_ready()
        everything = server.descendants()
        server.signal(number)
        assert server.wait_for_exit() == 0
        assert nothing_left(everything)
