"""What the image's HEALTHCHECK says."""

import os
import subprocess
import sys

from support.server import free_port


def check(**env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gptj_serve.health"]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def test_no_service() -> None:
    port = str(free_port())
    ran = check(GPTJ_PORT=port)
    assert (ran.returncode, ran.stderr) == (1, "")
    assert f"no answer on 127.0.0.1:{port}" in ran.stdout


def test_a_bad_setting() -> None:
    ran = check(GPTJ_PORT="99999")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert "GPTJ_PORT" in ran.stdout
