"""Runs the image as an operator would and looks at it through the docker command."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from gptj_serve import demo
from support.server import ROOT, Client, free_port


def model_mount(directory: Path) -> tuple[str, str]:
    """Options that mount a model where SageMaker puts it, read-only."""
    return ("--volume", f"{directory}:/opt/ml/model:ro")


DEMO = model_mount(demo.MODEL_DIR)
LOCKED_DOWN = (
    "--read-only",
    *("--tmpfs", "/tmp"),
    *("--user", "10001"),
    *("--cap-drop", "ALL"),
    *("--security-opt", "no-new-privileges"),
)
"""As strict as an operator can be: nothing but /tmp can be written, and that is mounted noexec."""


def docker(*arguments: str, timeout_s: float = 60, check: bool = True) -> str:
    """Run a docker command; returns its stdout.

    Raises:
        AssertionError: It failed; the message has its stderr.
    """
    ran = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )
    said = (ran.stdout + ran.stderr)[-3000:]
    assert not check or ran.returncode == 0, f"docker {' '.join(arguments)}: {said}"
    return ran.stdout


class Container(Client):
    """One container with the service's port published on the loopback interface.

    Args:
        image: What to run.
        options: Options of ``docker run``.
        command: What comes after the image's name.
        port_inside: Where the service listens in the container.
    """

    def __init__(self, image: str, *options: str, command: str = "serve", port_inside: int = 8080) -> None:
        self.port = free_port()
        publish = ["--publish", f"127.0.0.1:{self.port}:{port_inside}"]
        self.id = docker("run", "--detach", *publish, *options, image, *command.split()).strip()

    @property
    def lines(self) -> list[str]:  # type: ignore[override]
        """What ``docker logs`` shows."""
        ran = subprocess.run(["docker", "logs", self.id], capture_output=True, text=True, check=True)
        return (ran.stdout + ran.stderr).splitlines(keepends=True)

    def state(self) -> dict[str, Any]:
        """What docker knows of its state."""
        state: dict[str, Any] = json.loads(docker("inspect", "--format", "{{json .State}}", self.id))
        return state

    def exit_code(self) -> int | None:
        state = self.state()
        return None if state["Running"] else int(state["ExitCode"])

    def wait_for_exit(self, timeout_s: float) -> int:
        """Wait until it has ended; returns its exit code."""
        return int(docker("wait", self.id, timeout_s=timeout_s))

    def python(self, code: str) -> str:
        """Run Python code in the container, as root; returns its output."""
        return docker("exec", "--user", "0", self.id, "python", "-c", code)

    def engine_cpu_s(self) -> float:
        """CPU time that the engine process has used."""
        return float(self.python(f"{FIND_ENGINE}; print(sum(psutil.Process(engine).cpu_times()[:2]))"))

    def stop(self) -> float:
        """``docker stop`` as SageMaker does it: 30 s from SIGTERM to SIGKILL. Returns the seconds it took."""
        started_s = time.monotonic()
        docker("stop", "--time", "30", self.id, timeout_s=45)
        return time.monotonic() - started_s

    def close(self) -> None:
        docker("rm", "--force", "--volumes", self.id)


FIND_ENGINE = (
    "import psutil; engine = next(p.pid for p in psutil.process_iter() if 'gptj_serve.engine' in p.cmdline())"
)


def build(tag: str, *options: str, context: Path = ROOT, base: str | None = None) -> str:
    """``docker build``, on a base image or on ``TEST_BASE_IMAGE`` if that is set; returns the tag."""
    base = base or os.environ.get("TEST_BASE_IMAGE")
    on_base = ("--build-arg", f"BASE_IMAGE={base}") if base else ()
    docker("build", "--tag", tag, *on_base, *options, str(context), timeout_s=3600)
    return tag


def layers(image: str) -> list[str]:
    """Digests of an image's layers, the lowest first."""
    found: list[str] = json.loads(docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    return found


def run_in(image: str, program: str, *arguments: str) -> str:
    """Run another program than the service in a new container; returns its output."""
    return docker("run", "--rm", "--entrypoint", program, image, *arguments)
