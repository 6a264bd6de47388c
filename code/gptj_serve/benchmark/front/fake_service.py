"""Starts a front over the engine without a model, as ``serve`` would start it."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from gptj_serve import demo, run_dir
from gptj_serve.benchmark.targets import processes
from gptj_serve.serving import mms
from gptj_serve.serving.client import EngineClient
from gptj_serve.serving.http import front as http_front
from gptj_serve.serving.start import is_listening
from gptj_serve.serving.tokenizing.prepare import prepare
from gptj_serve.settings import Settings

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class FakeService:
    """A front and an engine without a model that are running.

    Attributes:
        directory: The private directory, which has the engine's socket.
        port: Where the front listens on this machine.
        front_process: The front's (first) process.
    """

    directory: Path
    port: int
    front_process: psutil.Process


@contextlib.contextmanager
def running(front: str, tokens_per_s: float, log: Path, *, prompt_s: float = 0.0) -> Iterator[FakeService]:
    """Run an engine without a model and a front. The file ``log`` is there when both have ended.

    Args:
        front: Name for ``GPTJ_FRONT``.
        tokens_per_s: How many tokens every sequence gets in a second.
        log: Where the engine writes what it has recorded.
        prompt_s: How long every prompt takes before the first token.
    """
    port = processes.free_port()
    env = {**os.environ, "GPTJ_FRONT": front, "GPTJ_HOST": "127.0.0.1", "GPTJ_PORT": str(port)}
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(run_dir.private())
        prepare(demo.MODEL_DIR).save(run_dir.tokenizer(directory))
        socket_path = run_dir.engine_socket(directory)
        command = [
            sys.executable,
            "-m",
            "gptj_serve.benchmark.front.fake_engine",
            f"--socket={socket_path}",
            f"--model={demo.MODEL_DIR}",
            f"--tokens-per-s={tokens_per_s}",
            f"--log={log.absolute()}",
            f"--prompt-s={prompt_s}",
        ]
        engine = stack.enter_context(processes.running(command, env))
        _wait_for(engine, socket_path.exists)
        start = _start_http if front == "http" else _start_mms
        process = stack.enter_context(start(Settings.from_env(env), directory, env))
        yield FakeService(directory, port, psutil.Process(process.pid))


@contextlib.contextmanager
def _start_http(
    settings: Settings, directory: Path, env: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    reader, go = os.pipe()
    command, front_env = http_front.prepare(reader, directory, env)
    with processes.running(command, front_env, pass_fds=[reader]) as process:
        os.close(reader)
        os.write(go, b"\n")
        os.close(go)
        _wait_for(process, lambda: is_listening(settings))
        yield process


@contextlib.contextmanager
def _start_mms(
    settings: Settings, directory: Path, env: Mapping[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    with contextlib.closing(EngineClient(run_dir.engine_socket(directory))) as client:
        info = client.info
    command, front_env = mms.prepare(settings, info, directory, env)
    with processes.running(command, front_env) as process:
        _wait_for(process, lambda: is_listening(settings))
        mms.warm_up(settings, info, directory, lambda: None)
        yield process


def _wait_for(process: "subprocess.Popen[bytes]", condition: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if process.poll() is not None or time.monotonic() > give_up_s:
            raise RuntimeError(f"{process.args!r} did not start")
        time.sleep(0.05)
