"""AWS's own SDK as a judge from outside: it deploys the image on the local engine, asks it and deletes it."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptj_serve import demo
from support.container import docker
from support.server import free_port

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]


@pytest.fixture
def leave_nothing() -> Iterator[None]:
    """The SDK leaves its stopped container and its network behind."""
    yield
    for container in docker("ps", "--all", "--quiet", "--filter", "network=sagemaker-local").split():
        docker("rm", "--force", container)
    docker("network", "rm", "sagemaker-local", check=False)


@pytest.mark.usefixtures("leave_nothing")
def test_deploy_ask_delete(image: str, tmp_path: Path) -> None:
    venv = os.environ.get("LOCAL_MODE_VENV")
    if venv is None:
        pytest.skip("LOCAL_MODE_VENV names no environment with the SDK; scripts/test-image makes one")
    script, answer = Path(__file__).parent / "local_mode.py", tmp_path / "answer.json"
    command = [f"{venv}/bin/python", str(script), image, str(demo.MODEL_DIR), str(free_port()), str(answer)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-3000:]
    assert list(json.loads(answer.read_text())[0]) == ["generated_text"]
    assert docker("ps", "--quiet", "--filter", "network=sagemaker-local") == ""
    states = docker("ps", "--all", "--filter", "network=sagemaker-local", "--format", "{{.Status}}")
    assert states.startswith("Exited (0)")
