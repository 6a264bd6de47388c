"""What the scripts install, with a stand-in for the virtual environment's pip."""

import fcntl
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptj_serve.benchmark.__main__ import COMMANDS
from support.server import ROOT, stand_in_venv


@dataclass
class Scripts:
    """Scripts with an environment of their own."""

    venv: Path
    log: Path
    env: dict[str, str]

    def run(self, *command: str, cwd: Path = ROOT) -> str:
        """Run a script; what pip was asked for."""
        self.log.write_text("")
        subprocess.run(
            [ROOT / "scripts" / command[0], *command[1:]],
            env={**os.environ, **self.env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=60,
        )
        return self.log.read_text()


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    """Nothing is installed yet."""
    return Scripts(tmp_path / "venv", tmp_path / "pip.log", stand_in_venv(tmp_path))


@pytest.mark.parametrize("name", ["build", "push", "deploy", "invoke", "scale", "status", "delete"])
def test_deploying_installs_its_extra_and_not_what_serves(scripts: Scripts, name: str) -> None:
    package, extra, *requirements = scripts.run(name, "--help").splitlines()
    assert package.endswith(f"--no-deps --editable {ROOT} packaging")
    assert extra.endswith("--requirement /dev/stdin")
    assert {one.partition("<")[0] for one in requirements} == {"boto3", "huggingface-hub", "tqdm"}


def test_models_are_uploaded_with_what_serves_them(scripts: Scripts) -> None:
    base, _, extra, *_ = scripts.run("upload-model", "--help").splitlines()
    assert base.endswith(f"--quiet --editable {ROOT}")
    assert extra.endswith("--requirement /dev/stdin")


def test_what_there_is_to_measure_is_told_without_installing(scripts: Scripts) -> None:
    assert scripts.run("benchmark", "--help") == scripts.run("benchmark") == ""


def test_the_script_tells_of_every_command_there_is_to_measure() -> None:
    told = (ROOT / "scripts/benchmark").read_text()
    assert [name for name in COMMANDS if f"#   scripts/benchmark {name} " not in told] == []


def test_java_is_for_servers_that_are_started_here(scripts: Scripts) -> None:
    (base,) = scripts.run("benchmark", "run", "--url", "http://127.0.0.1:1", "--help").splitlines()
    assert base.endswith(f"--quiet --editable {ROOT}")
    java, *_ = scripts.run("benchmark", "run", "--spawn", "hf", "--help").splitlines()
    assert java.endswith(f"--quiet --editable {ROOT}[java]")


def test_nothing_is_installed_again(scripts: Scripts) -> None:
    assert scripts.run("status", "--help")
    assert scripts.run("status", "--help") == ""
    assert scripts.run("deploy", "--help") == ""


def test_what_deploys_is_completed_to_what_serves_and_the_other_way_round(scripts: Scripts) -> None:
    scripts.run("deploy", "--help")
    (java,) = scripts.run("benchmark", "front", "--help").splitlines()
    assert java.endswith(f"--quiet --editable {ROOT}[java]")
    assert scripts.run("upload-model", "--help") == ""


def test_an_environment_that_could_not_be_made_is_tried_again(scripts: Scripts) -> None:
    (scripts.venv / "bin/python").write_text("#!/bin/sh\nexit 1\n")
    script = f"set -euo pipefail; source {ROOT}/scripts/common.sh; made=$(sdk_venv sdk 'sdk>=1'); echo $made"
    env = {**os.environ, "VENV_DIR": str(scripts.venv)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert not list(scripts.venv.parent.glob("venv-sdk/.installed-*"))


def test_two_scripts_at_once_install_one_after_the_other(scripts: Scripts) -> None:
    """The second finds there what the first has installed."""
    scripts.run("status", "--help")
    (stamps,) = scripts.venv.glob(".installed-*")
    (stamps / "deploy").unlink()
    folder = os.open(scripts.venv.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as the first script holds it while it installs
    scripts.log.write_text("")
    second = subprocess.Popen(
        [ROOT / "scripts/status", "--help"],
        env={**os.environ, **scripts.env},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert second.stderr is not None
        assert second.stderr.readline() == b"Waiting for another script that installs ...\n"
        (stamps / "deploy").touch()
        os.close(folder)
        assert second.wait(timeout=60) == 0
    finally:
        second.kill()
        second.communicate()
    assert scripts.log.read_text() == ""
