"""A model directory is data: nothing in it is run, also where it is the working directory."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gptj_serve import demo, safe_path
from gptj_serve.benchmark.targets.spawn import Spawn, spawned
from gptj_serve.settings import Settings
from support.server import ROOT, WITHOUT_MODEL, Server, stand_in_venv

OUR_OWN = (
    "gptj_serve",
    "inference",
    "mms",
    "uvicorn",
    "uvloop",
    "torch",
    "transformers",
    "numpy",
    "safetensors",
)
HOSTILE = """
import os
with open({mark!r}, "a") as mark:
    mark.write(__name__ + " ")
os._exit(66)
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A model with a module of every name that a program may ask for; what ran is in ``ran`` beside it."""
    model = shutil.copytree(demo.MODEL_DIR, tmp_path / "model")
    code = HOSTILE.format(mark=str(tmp_path / "ran"))
    for name in (*sys.stdlib_module_names, *OUR_OWN, "pip", "setuptools", "pytest", "boto3", "sitecustomize"):
        (model / f"{name}.py").write_text(code)
    return model


def what_ran(hostile: Path) -> str:
    """Names of the hostile modules that were run."""
    ran = hostile.parent / "ran"
    return ran.read_text() if ran.exists() else ""


def test_the_modules_are_run_where_they_are_looked_for(hostile: Path) -> None:
    """Else the others would prove nothing."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run([sys.executable, "-m", "timeit", "-n1"], cwd=hostile, env=env, check=False)
    assert (done.returncode, bool(what_ran(hostile))) == (66, True)


@pytest.mark.parametrize(
    ("command", "front"),
    [
        ([sys.executable, ROOT / "serve"], "mms"),
        ([sys.executable, ROOT / "serve"], "http"),
        ([ROOT / "scripts/run-local", "--model", "."], "http"),
    ],
)
def test_a_service_started_in_a_model_directory_runs_none_of_it(
    hostile: Path, command: list[str | Path], front: str
) -> None:
    settings = {"GPTJ_MODEL_DIR": ".", "GPTJ_FRONT": front, **stand_in_venv(hostile.parent)}
    if (command[1], front) != (ROOT / "serve", "http"):  # one engine is enough to see what engines import
        settings |= WITHOUT_MODEL
    with contextlib.closing(Server(command=command, cwd=hostile, **settings)) as server:
        server.wait_until_ready()
        assert server.generate("In the", max_new_tokens=3).status == 200
        folders = {process.cwd() for process in server.descendants()}
    assert what_ran(hostile) == ""
    assert str(hostile) not in folders


HELP = [
    *([name, "--help"] for name in ("build", "push", "deploy", "invoke", "scale", "status", "delete")),
    ["upload-model", "--help"],
    ["benchmark", "run", "--help"],
    ["benchmark", "report", "--help"],
    ["build-kernels", "fused"],
]


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_a_script_started_in_a_model_directory_runs_none_of_it(hostile: Path, command: list[str]) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / command[0], *command[1:]],
        env={**os.environ, **stand_in_venv(hostile.parent), "PYTHON": sys.executable},
        cwd=hostile,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, what_ran(hostile)) == (0, ""), done.stderr


def test_what_python_makes_an_environment_with_runs_none_of_it(hostile: Path) -> None:
    script = f"set -euo pipefail; source {ROOT}/scripts/common.sh; find_python"
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(["bash", "-c", script], env=env, cwd=hostile, capture_output=True, check=False)
    assert (done.returncode, what_ran(hostile)) == (0, "")


def test_a_measured_server_runs_none_of_it(hostile: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)
    spawn = Spawn("fused", "fused", WITHOUT_MODEL)
    with spawned(spawn, Path("."), timeout_s=60) as running:
        assert psutil.Process(running.pid).cwd() == "/"
    assert what_ran(hostile) == ""


def test_relative_paths_stay_what_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {
        "GPTJ_MODEL_DIR": "model",
        "JAVA_HOME": "/opt/java",
        "TMPDIR": " ",
        "PYTHONPATH": os.pathsep.join(["", "lib", "/usr/lib", ""]),
        "LD_LIBRARY_PATH": "",
        "OTHER": "relative",
    }
    assert safe_path.environment(env) == {
        "GPTJ_MODEL_DIR": str(tmp_path / "model"),
        safe_path.MODEL_AS_GIVEN: f"{tmp_path / 'model'}\nmodel",
        "JAVA_HOME": "/opt/java",
        "TMPDIR": " ",
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "lib"), "/usr/lib"]),
        "LD_LIBRARY_PATH": "",
        "OTHER": "relative",
        "PYTHONSAFEPATH": "1",
    }


@pytest.mark.parametrize("given", ["owner/gpt-j", "~/gpt-j", "s3://bucket/gpt-j", "/models/gpt-j"])
def test_messages_name_the_model_as_it_was_given(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many processes stand between the user and the one that complains."""
    monkeypatch.chdir(tmp_path)
    env = safe_path.environment({"GPTJ_MODEL_DIR": given})
    monkeypatch.chdir("/")
    settings = Settings.from_env(safe_path.environment(env))
    assert (settings.model_as_given, settings.model_dir.is_absolute()) == (given, True)
    # a server that is started with another model has that one's name
    other = Settings.from_env(safe_path.environment(env | {"GPTJ_MODEL_DIR": "/another"}))
    assert other.model_as_given == "/another"
    assert Settings.from_env({}).model_as_given is None
