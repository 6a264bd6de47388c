"""PID 1 of the container: starts the engine, then the front, and ends both together.

The front listens when the engine is ready and never outlives it, so if a front answers ``/ping``, there is
a model that can answer. Exit codes: 0 after SIGTERM or SIGINT, else non-zero.
"""

import contextlib
import json
import logging
import os
import platform
import socket
import sys
import time
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

import gptj_serve
from gptj_serve import logs, run_dir, safe_path
from gptj_serve.children import Child, ChildDied, Children, Stopped
from gptj_serve.errors import StartupError
from gptj_serve.host.driver import Driver, find_driver
from gptj_serve.host.other_images import what_is_not_used
from gptj_serve.host.ports import check_port_is_free
from gptj_serve.logs import log_event
from gptj_serve.models.model_dir import find_directory
from gptj_serve.request import ModelInfo
from gptj_serve.serving import mms
from gptj_serve.serving.http import front as http_front
from gptj_serve.serving.start import is_listening
from gptj_serve.serving.templates.files import names_template
from gptj_serve.serving.templates.limits import MAX_WAITING
from gptj_serve.serving.tokenizing import prepare
from gptj_serve.serving.tokenizing.files import read_plain
from gptj_serve.settings import Settings

logger = logging.getLogger("gptj_serve.launcher")

EXIT_NOT_STARTED = 1
EXIT_ENGINE_DIED = 70
EXIT_FRONT_DIED = 71
ANSWER_GRACE_S = 1.0
"""How many seconds the front has for its last answers after the engine has ended."""
END_TIMEOUT_S = 1.0
WATCH_INTERVAL_S = 1.0
FRONT_START_TIMEOUT_S = 120.0


class Launcher:
    """Runs one service from start to end.

    Args:
        settings: The service's settings.
        env: Environment that the children inherit.
        driver: The host's GPU driver, and what is needed to use it.
        directory: The private directory for sockets and generated files.
    """

    def __init__(self, settings: Settings, env: dict[str, str], driver: Driver, directory: Path) -> None:
        self._settings = settings
        self._env = env
        self._driver = driver
        self._directory = directory
        self._front: Any = http_front if settings.front == "http" else mms
        self._children = Children()
        self._started_s = time.monotonic()

    def run(self) -> int:
        """Serve until told to stop or a child dies; returns the exit code.

        Raises:
            StartupError: The engine or the front could not start.
        """
        # these checks are cheap, and their failures better known before minutes of loading
        check_port_is_free(self._settings.host, self._settings.port)
        self._front.check(self._env)
        model_dir = find_directory(
            self._settings.model_dir, self._settings.model_as_given, self._settings.model_option
        )
        for sentence in what_is_not_used(
            self._env, self._settings.front, (self._settings.model_dir, model_dir)
        ):
            log_event(logger, "not_used", sentence, level=logging.WARNING)
        engine: Child | None = None
        try:
            self._start_template_process(model_dir)
            tokenizer = self._start_tokenizer(model_dir)
            loading, said = self._start_engine()
            go = None
            if self._has_tokenizer(tokenizer, loading) and self._front.CAN_WAIT:
                go = self._start_waiting_front()
            info = self._wait_for_engine(loading, said)
            engine = loading
            self._start_front(info, go)
            seconds = round(time.monotonic() - self._started_s, 3)
            message = f"ready on port {self._settings.port}"
            log_event(logger, "ready", message, seconds=seconds, engine=info.engine)
            while not self._front.has_lost_its_workers(self._directory):
                self._children.wait(WATCH_INTERVAL_S)
            log_event(logger, "child_died", "the front lost its workers", level=logging.ERROR)
            return EXIT_FRONT_DIED
        except Stopped:
            return self._drain(engine)
        except ChildDied as error:
            log_event(logger, "child_died", str(error), level=logging.ERROR)
            self._let_front_answer()
            return EXIT_ENGINE_DIED if error.child.name == "engine" else EXIT_FRONT_DIED
        finally:
            self._children.end_all(END_TIMEOUT_S)

    def _start_template_process(self, model_dir: Path) -> None:
        """Start the process that renders the model's chat template, if any; its socket works at once."""
        if not names_template(model_dir):
            return
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(run_dir.template_socket(self._directory)))
            listener.listen(MAX_WAITING)
            command = [sys.executable, "-m", "gptj_serve.serving.templates.process"]
            command += ["--model-dir", str(model_dir), "--listen-fd", str(listener.fileno())]
            self._children.start("template process", command, self._env, pass_fds=[listener.fileno()])

    def _start_tokenizer(self, model_dir: Path) -> Child | None:
        """Put the tokenizer where fronts find it; returns the process that does so, if it takes one."""
        directory = run_dir.tokenizer(self._directory)
        plain = read_plain(model_dir)
        if plain is not None:
            plain.save(directory)
            return None
        process = self._children.start("tokenizer", prepare.command(model_dir, directory), self._env)
        process.expected_to_end = True
        return process

    def _has_tokenizer(self, process: Child | None, engine: Child) -> bool:
        """Wait for the tokenizer; False if the engine, which says why itself, has died meanwhile.

        Raises:
            StartupError: The tokenizer cannot be read.
        """
        while process is not None and process.is_running:
            died = self._died_within(0.05)
            if died is not None and died.child is not engine:
                raise self._not_started(died)
            if died is not None:
                return False
        if process is not None:
            prepare.outcome(run_dir.tokenizer(self._directory), process.exit_code)
        return True

    def _start_engine(self) -> tuple[Child, int]:
        """Start the engine; also returns the descriptor on which it says whether it is ready."""
        reader, writer = os.pipe()
        command = [sys.executable, "-m", "gptj_serve.engine", "--ready-fd", str(writer)]
        command += ["--socket", str(run_dir.engine_socket(self._directory))]
        engine = self._children.start(
            "engine", command, self._driver.environment(self._env), pass_fds=[writer]
        )
        os.close(writer)
        os.set_blocking(reader, False)
        return engine, reader

    def _wait_for_engine(self, engine: Child, reader: int) -> ModelInfo:
        with open(reader, "rb", buffering=0) as ready:
            said = b""
            while not said.endswith(b"\n"):
                died = self._died_within(0.05) or (None if engine.is_running else ChildDied(engine))
                said += ready.read() or b""
                if died is not None and not said.endswith(b"\n"):
                    raise self._not_started(died)
        message = json.loads(said)
        if message["status"] != "ready":
            raise StartupError(message["message"])
        return msgspec.convert(message["model"], ModelInfo)

    def _died_within(self, timeout_s: float) -> ChildDied | None:
        # what an engine says is read before it is checked whether it has ended
        try:
            self._children.wait(timeout_s)
        except ChildDied as error:
            return error
        return None

    def _start_waiting_front(self) -> int:
        """Let the front load beside the engine; it listens when something is written to the returned pipe."""
        reader, go = os.pipe()
        command, env = self._front.prepare(reader, self._directory, self._env)
        self._children.start("front", command, env, pass_fds=[reader])
        os.close(reader)
        return go

    def _start_front(self, info: ModelInfo, go: int | None) -> None:
        if go is None:
            command, env = self._front.prepare(self._settings, info, self._directory, self._env)
            self._children.start("front", command, env)
        else:
            with contextlib.suppress(BrokenPipeError):  # the front has died, which is noticed below
                os.write(go, b"\n")
            os.close(go)
        try:
            self._wait_for_front(info)
        except ChildDied as error:
            if error.child.name == "engine":
                raise
            raise self._not_started(error) from None
        except StartupError as error:
            raise self._not_started(error) from None

    def _wait_for_front(self, info: ModelInfo) -> None:
        give_up_s = time.monotonic() + FRONT_START_TIMEOUT_S
        while not is_listening(self._settings):
            self._look_at_front(0.05)
            if time.monotonic() > give_up_s:
                raise StartupError(f"the front did not answer within {FRONT_START_TIMEOUT_S:g} s")
        self._front.warm_up(self._settings, info, self._directory, lambda: self._look_at_front(0))

    def _look_at_front(self, timeout_s: float) -> None:
        self._children.wait(timeout_s)
        reason = run_dir.start_failure(self._directory)
        if reason is not None:  # otherwise the model server would start its workers again and again
            raise StartupError(reason)

    def _not_started(self, error: Exception) -> StartupError:
        """The error that ends the start, with the reason that the front has left, if there is one."""
        return StartupError(run_dir.start_failure(self._directory) or str(error))

    def _drain(self, engine: Child | None) -> int:
        """Let the engine finish its requests, unless a second signal comes; returns the exit code."""
        log_event(logger, "stopping", "stopping")
        if engine is None:
            return 0
        engine.terminate()
        # unless it is stuck, the engine itself fails the requests that are left when its time is over
        with contextlib.suppress(Stopped, ChildDied):
            self._children.wait_for_end(engine, self._settings.drain_timeout_s + 1)
        # its end makes the front answer everybody
        engine.kill_session()
        self._let_front_answer()
        return 0 if engine.exit_code == 0 else EXIT_ENGINE_DIED

    def _let_front_answer(self) -> None:
        until_s = time.monotonic() + ANSWER_GRACE_S
        while time.monotonic() < until_s:
            try:
                self._children.wait(until_s - time.monotonic())
            except (Stopped, ChildDied):
                return


def _versions() -> dict[str, str]:
    found = {"gptj-serve": gptj_serve.__version__, "python": platform.python_version()}
    for package in ("torch", "transformers", "deepspeed", "multi-model-server", "sagemaker-inference"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _check_arguments(arguments: list[str]) -> None:
    # `docker run IMAGE serve` passes that word to the entrypoint, which is serve itself
    if arguments not in ([], ["serve"]):
        raise StartupError(
            f"{' '.join(arguments)!r}: the only command here is 'serve', without options: settings are "
            "GPTJ_* environment variables (another program: docker run --entrypoint PROGRAM IMAGE)"
        )


def main() -> int:
    """Entry point of ``serve``; returns the exit code."""
    logs.configure("serve", "info")
    try:
        _check_arguments(sys.argv[1:])
        safe_path.leave_working_directory()
        settings = Settings.from_env(os.environ)
        logs.configure("serve", settings.log_level)
        driver = find_driver(os.environ)
        log_event(logger, "starting", "starting", versions=_versions(), driver=asdict(driver))
        with run_dir.private() as directory:
            exit_code = Launcher(settings, dict(os.environ), driver, directory).run()
        log_event(logger, "stopped", "stopped", exit_code=exit_code)
        return exit_code
    except StartupError as error:
        log_event(logger, "not_started", str(error), level=logging.ERROR)
        if sys.stderr.isatty():
            print(error, file=sys.stderr)  # the log is for machines, but here a person looks on
        return EXIT_NOT_STARTED
