"""What holds until the service is ready, and what keeps it from starting."""

import contextlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import psutil
import pytest
import tokenizers
import transformers

from gptj_serve import demo
from support.server import (
    ROOT,
    START_TIMEOUT_S,
    WITHOUT_MODEL,
    WITHOUT_MODEL_DIR,
    Server,
    free_port,
    nothing_left,
    python_path,
    serving,
    stopping_at,
    until,
)


@pytest.mark.parametrize("front", ["mms", "http"])
def test_ping_answers_only_when_the_engine_is_ready(tmp_path: Path, front: str) -> None:
    engine = {"mms": {}, "http": WITHOUT_MODEL}[front]
    with contextlib.closing(Server(TMPDIR=str(tmp_path), GPTJ_FRONT=front, **engine)) as server:
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


def _in_old_files(directory: Path) -> None:
    """The tokenizer as vocab.json and merges.txt; prompts begin with the end of text, a word is special."""
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    backend.model.save(str(directory))
    (directory / "tokenizer.json").unlink()
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_bos_token": True,
        "additional_special_tokens": ["Ġthe"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_nested_and_read_only_model_directory_with_old_files_is_served(tmp_path: Path) -> None:
    nested = tmp_path / "export" / "model-1"
    shutil.copytree(demo.MODEL_DIR, nested)
    _in_old_files(nested)
    for folder in (nested, nested.parent, tmp_path):
        folder.chmod(0o555)
    try:
        with serving(**WITHOUT_MODEL, GPTJ_MODEL_DIR=str(tmp_path), GPTJ_FRONT="http") as server:
            (answer,) = server.generate("In the beginning", max_new_tokens=9, details=True).json
            assert server.events("tokenizer_converted")
            assert server.processes_of("gptj_serve.serving.tokenizing.convert") == []
    finally:
        for folder in (tmp_path, nested.parent, nested):
            folder.chmod(0o755)
    whole = transformers.AutoTokenizer.from_pretrained(nested)
    assert answer["details"]["prompt_tokens"] == len(whole("In the beginning").input_ids) == 5
    generated = [token["id"] for token in answer["details"]["tokens"]]
    assert answer["generated_text"] == whole.decode(generated, skip_special_tokens=True)
    assert [token["special"] for token in answer["details"]["tokens"]] == [
        token_id in whole.all_special_ids for token_id in generated
    ]


def _without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def _of_another_kind(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(
        json.dumps(config | {"model_type": "llama", "architectures": ["L"]})
    )


def _truncated(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 1_000_000)


def _with_a_token_that_is_none(directory: Path) -> None:
    config = {"added_tokens_decoder": {"0": "<|endoftext|>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _without_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (_without_config, "config.json"),
        (_of_another_kind, "GPTJForCausalLM"),
        (_truncated, "model.safetensors"),
        (_without_tokenizer, "tokenizer.json"),
        (_with_a_token_that_is_none, "Transformers makes no tokenizer of"),
    ],
)
def test_a_broken_model_directory_is_said_and_nothing_starts(tmp_path: Path, harm, says: str) -> None:  # type: ignore[no-untyped-def]
    directory = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, directory)
    harm(directory)
    with contextlib.closing(Server(**WITHOUT_MODEL, GPTJ_MODEL_DIR=str(directory))) as server:
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


@pytest.mark.parametrize("front", ["mms", "http"])
def test_a_taken_port_is_said(front: str) -> None:
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        contextlib.closing(Server(GPTJ_FRONT=front, GPTJ_PORT=str(port))) as server,
    ):
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        message = server.events("not_started")[0]["message"]
    assert f"cannot listen on 127.0.0.1:{port}" in message
    assert "GPTJ_PORT" in message


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
    env = {"PYTHONPATH": python_path(tmp_path, WITHOUT_MODEL_DIR), "SAGEMAKER_PROGRAM": "broken"}
    with contextlib.closing(Server(**env)) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        (event,) = server.events("not_started")
        assert event["message"] == "the front could not start: RuntimeError: on purpose"


FAIL = """
import sys

import engine_without_model

if any(name in " ".join(sys.orig_argv) for name in ("gptj_serve.serving.http", "model_service_worker")):
    from gptj_serve import errors
    from gptj_serve.serving.text import Tokenizer

    def of(prepared):
        raise {error}

    Tokenizer.of = of
"""


@pytest.mark.parametrize(
    ("front", "error", "reason"),
    [
        ("mms", "errors.StartupError('tokenizer.json: no')", "tokenizer.json: no"),
        ("http", "OSError('gone')", "the front could not start: OSError: gone"),
    ],
    ids=["foreseen", "unforeseen"],
)
def test_what_a_front_finds_itself_is_the_one_reason_of_the_start_that_failed(
    tmp_path: Path, front: str, error: str, reason: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAIL.format(error=error))
    env = {"GPTJ_FRONT": front, "PYTHONPATH": python_path(tmp_path, WITHOUT_MODEL_DIR)}
    with contextlib.closing(Server(**env)) as server:
        assert server.wait_for_exit(START_TIMEOUT_S) == 1
        assert [event["message"] for event in server.events("not_started")] == [reason]
        assert server.events("child_died") == []
        told = [record for record in server.records() if "Traceback" in record["message"]]
        assert told == []  # where it was raised is one record's own field, and only of what nobody foresaw
        assert ("Traceback" in server.log) == reason.startswith("the front could not start")


def test_a_relative_model_directory_is_served() -> None:
    relative = str(demo.MODEL_DIR.relative_to(ROOT))
    with serving(**WITHOUT_MODEL, GPTJ_MODEL_DIR=relative, GPTJ_FRONT="http") as server:
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
