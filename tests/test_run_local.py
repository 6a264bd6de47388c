"""``scripts/run-local`` and what it runs: what is shown, what is said, and how it ends."""

import contextlib
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gptj_serve import demo
from support.server import (
    END_TIMEOUT_S,
    IN_THE_MIDDLE,
    ROOT,
    START_TIMEOUT_S,
    WITHOUT_MODEL,
    WITHOUT_MODEL_DIR,
    Server,
    free_port,
    held_in_flight,
    in_flight,
    nothing_left,
    python_path,
    stand_in_venv,
    until,
)

BARE_PYTHON = """#!/bin/sh
# Python without any package; it makes no virtual environment
case "$*" in "-I -m venv"*) exit 9 ;; esac
exec {python} "$@"
"""


def before_installing(directory: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run the script where nothing is installed; exit code 9 means that it would install now."""
    python = directory / "python"
    python.write_text(BARE_PYTHON.format(python=sys._base_executable))
    python.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GPTJ_")}
    return subprocess.run(
        [ROOT / "scripts/run-local", *arguments],
        env={
            **clean,
            "PYTHON": str(python),
            "VENV_DIR": str(directory / "venv"),
            "GPTJ_PORT": str(free_port()),
            **env,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--engine", "gpu"], {}, "GPTJ_ENGINE='gpu': must be one of auto, fused, deepspeed, hf"),
        (["--model", "/nowhere"], {}, "--model /nowhere: no such directory"),
        ([], {"GPTJ_MODEL_DIR": "/nowhere"}, "GPTJ_MODEL_DIR=/nowhere: no such directory"),
        ([], {"GPTJ_PORT": "0"}, "GPTJ_PORT='0': must be a whole number from 1 to 65535"),
        (["--front", "grpc"], {}, "GPTJ_FRONT='grpc': must be one of mms, http"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_installed(
    tmp_path: Path, arguments: list[str], env: dict[str, str], says: str
) -> None:
    done = before_installing(tmp_path, *arguments, **env)
    assert (done.returncode, done.stderr, done.stdout) == (1, f"{says}\n", "")


def test_a_taken_port_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        done = before_installing(tmp_path, GPTJ_PORT=str(port))
    assert done.returncode == 1
    assert done.stderr.startswith(f"cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_what_can_be_served_is_installed_for(tmp_path: Path, weights: str) -> None:
    model = shutil.copytree(demo.MODEL_DIR, tmp_path / "model")
    if weights != "model.safetensors":  # it takes PyTorch to look into
        (model / "model.safetensors").rename(model / weights)
    assert before_installing(tmp_path, "--model", str(model)).returncode == 9


def test_run_local_says_in_plain_words_what_is_wrong_with_a_model() -> None:
    with contextlib.closing(Server("gptj_serve.run_local", GPTJ_MODEL_DIR="/nowhere")) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        assert server.log == "GPTJ_MODEL_DIR=/nowhere: no such directory\n"


def test_run_local_says_in_plain_words_why_serve_does_not_start() -> None:
    with contextlib.closing(Server("gptj_serve.run_local", GPTJ_FRONT="mms", JAVA_HOME="/nowhere")) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
    assert server.lines[-1] == "JAVA_HOME='/nowhere': there is no bin/java in it\n"
    assert not server.events("not_started")


def shown_completion(server: Server) -> Server:
    """Wait until run-local has shown all that it shows."""
    until(lambda: "Ctrl-C ends the server." in server.log, START_TIMEOUT_S)
    assert "Completion:" in server.log
    return server


@pytest.mark.parametrize("front", ["mms", "http"])
def test_run_local_shows_a_completion(front: str) -> None:
    log_level = {"mms": "info", "http": "warning"}[front]
    with contextlib.closing(
        Server("gptj_serve.run_local", GPTJ_FRONT=front, GPTJ_LOG_LEVEL=log_level, **WITHOUT_MODEL)
    ) as server:
        shown_completion(server)
        url = f"http://127.0.0.1:{server.port}/"
        assert f"curl {url}invocations" in server.log
        assert (f"curl -N {url}invocations" in server.log) == (front == "http")
        assert (f"In a browser: {url}\n" in server.log) == (front == "http")
        assert ("Without --front mms it also streams" in server.log) == (front == "mms")
    levels = {line["level"] for line in server.records()}
    assert ("info" in levels) == (log_level == "info")


def test_a_terminal_gets_the_completion_and_warnings_in_plain_words() -> None:
    terminal, its_end = pty.openpty()
    env = {name: value for name, value in os.environ.items() if not name.startswith("GPTJ_")}
    with (
        open(terminal, errors="replace") as shown,
        subprocess.Popen(
            [sys.executable, "-m", "gptj_serve.run_local"],
            env={**env, **WITHOUT_MODEL, "GPTJ_PORT": str(free_port()), "GPTJ_ENGINE": "fused"},
            stdout=subprocess.PIPE,
            stderr=its_end,
            text=True,
        ) as process,
    ):
        os.close(its_end)
        assert process.stdout is not None
        said = list(iter(process.stdout.readline, "Ctrl-C ends the server.\n"))
        assert any(line.startswith("In a browser: ") for line in said)
        (engine,) = [
            one
            for one in psutil.Process(process.pid).children(recursive=True)
            if "gptj_serve.engine" in one.cmdline()
        ]
        engine.kill()
        assert process.wait(END_TIMEOUT_S) == 70
        lines = []
        with contextlib.suppress(OSError):  # how a terminal ends
            lines.extend(shown)
    assert lines == [
        f"Loading {demo.MODEL_DIR} ...\n",
        "serve: error: the engine was killed (out of memory?)\n",
    ]


@pytest.mark.parametrize("arguments", [["--front"], ["--front", ""], ["--frontend", "mms"]])
def test_wrong_usage_is_told(tmp_path: Path, arguments: list[str]) -> None:
    assert before_installing(tmp_path, *arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "extra"), [([], ""), (["--front", "mms"], "[java]"), (["--front", "MMS"], "[java]")]
)
def test_java_is_installed_for_the_model_server_alone(
    tmp_path: Path, arguments: list[str], extra: str
) -> None:
    env = {**os.environ, **stand_in_venv(tmp_path), "GPTJ_PORT": str(free_port())}
    with (tmp_path / "venv/bin/python").open("a") as python:
        python.write("exit 9\n")  # nothing more, once pip has been asked
    done = subprocess.run([ROOT / "scripts/run-local", *arguments], env=env, check=False, capture_output=True)
    assert done.returncode == 9
    asked = (tmp_path / "pip.log").read_text().splitlines()
    assert asked[0].endswith(f"--quiet --editable {ROOT}{extra}")


def test_run_local_asks_when_the_fronts_workers_are_up(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\nimport inference\nfrom inference import *\n"
        "def model_fn(model_dir):\n    time.sleep(5)\n    return inference.model_fn(model_dir)\n"
    )
    env = {"GPTJ_FRONT": "mms", "SAGEMAKER_PROGRAM": "slow"}
    env["PYTHONPATH"] = python_path(tmp_path, WITHOUT_MODEL_DIR)
    with contextlib.closing(Server("gptj_serve.run_local", **env)) as server:
        shown_completion(server)
    seconds = re.search(r"^ +\((.+) s\)$", server.log, re.MULTILINE)
    assert seconds
    assert float(seconds[1]) < 4


def test_run_local_ends_with_ctrl_c() -> None:
    with contextlib.closing(Server("gptj_serve.run_local", **WITHOUT_MODEL, GPTJ_FRONT="http")) as server:
        shown_completion(server)
        everything = server.descendants()
        assert everything
        # one Ctrl-C is one signal: what runs is finished
        with held_in_flight(server) as request:
            os.killpg(server.process.pid, signal.SIGINT)  # as the terminal does it
            server.wait_for("stopping")
        assert request.result().status == 200
        assert server.wait_for_exit() == 0
        assert len(server.events("stopping")) == 1
        assert nothing_left(everything)


def test_a_terminal_that_is_gone_ends_it_no_sooner() -> None:
    """Nobody reads the log any more: what runs is finished none the less."""
    with contextlib.closing(Server("gptj_serve.run_local", **WITHOUT_MODEL, GPTJ_FRONT="http")) as server:
        shown_completion(server)
        server.stop_reading()
        with in_flight(server, **IN_THE_MIDDLE) as request:
            server.signal(signal.SIGHUP)
            assert request.result().status == 200
        server.wait_for_exit()


def test_when_run_local_is_killed_serve_ends_in_order(tmp_path: Path) -> None:
    with contextlib.closing(
        Server("gptj_serve.run_local", **WITHOUT_MODEL, GPTJ_FRONT="http", TMPDIR=str(tmp_path))
    ) as server:
        server.wait_until_ready()
        everything = server.descendants()
        server.signal(signal.SIGKILL)
        is_over = nothing_left(everything)
        for process in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert is_over
        assert list(tmp_path.glob("gptj-*")) == []
