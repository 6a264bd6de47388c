"""Scripts install the extra ``deploy`` alone: commands are run where nothing else can be imported."""

import json
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from gptj_serve.aws.common.clients import Aws
from support.aws import sagemaker_runtime as fake
from support.aws.deploy_account import DATA, ROLE, push_image, upload
from support.aws.docker_engine import Engine
from support.aws.run_commands import Result
from support.server import WAIT_TIMEOUT_S

WITHOUT_THE_REST = """
import contextlib, importlib, io, json, sys
there = {*sys.argv[1].split(","), *sys.stdlib_module_names}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None and name not in there:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder)
results = []
for name, *arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = importlib.import_module(f"gptj_serve.aws.{name}").main(arguments)
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def needed_by(name: str, extra: str = "") -> set[str]:
    """A distribution's requirements, theirs and so on."""
    found: set[str] = set()
    for one in map(Requirement, requires(name) or []):
        is_extras = one.marker is not None and not one.marker.evaluate({"extra": ""})
        applies = one.marker is None or one.marker.evaluate({"extra": extra})
        if applies and is_extras == bool(extra):
            found |= {canonicalize_name(one.name), *needed_by(one.name)}
    return found


INSTALLED = needed_by("gptj-serve", "deploy")
MODULES = {
    "gptj_serve",
    *(
        module
        for module, names in packages_distributions().items()
        for name in names
        if canonicalize_name(name) in INSTALLED
    ),
}


def run(*commands: tuple[str, ...], also: tuple[str, ...] = ()) -> list[Result]:
    """Commands one after another, in one process with the modules that their scripts have installed."""
    argv = [sys.executable, "-c", WITHOUT_THE_REST, ",".join([*MODULES, *also])]
    done = subprocess.run(
        argv, input=json.dumps(commands), capture_output=True, text=True, timeout=WAIT_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return [Result(*one).check() for one in json.loads(done.stdout)]


def test_the_extra_brings_what_talks_to_aws_and_not_what_serves() -> None:
    assert {"boto3", "botocore", "huggingface_hub", "tqdm"} <= MODULES
    assert {"torch", "transformers", "tokenizers", "numpy"} & MODULES == set()


def test_help() -> None:
    names = ["build", "push", "deploy", "invoke", "scale", "status", "delete"]
    for name, result in zip(names, run(*((name, "--help") for name in names)), strict=True):
        assert f"usage: scripts/{name}" in result.out


def test_uploading_models_shows_its_help_without_pytorch() -> None:
    (result,) = run(("upload_model", "--help"), also=("tokenizers",))
    assert "usage: scripts/upload-model" in result.out


@pytest.mark.usefixtures("aws")
def test_building_and_pushing(engine: Engine) -> None:
    engine.add_image()
    built, pushed = run(("build", "--dry-run"), ("push", "--json"))
    assert "docker" in built.out
    assert pushed.json["pushed"]


def test_from_deploying_to_deleting(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(aws)
    deploy = ("deploy", "--image", push_image(aws, "one"), "--model-data", DATA, "--role", ROLE)
    text = json.dumps([{"generated_text": " and the earth"}]).encode()
    with fake.running(lambda _: fake.Answer(200, (text,))) as runtime:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", runtime.url)
        plan, deployed, status, scale, asked, refused, deleted = run(
            (*deploy, "--dry-run"),
            (*deploy, "--json"),
            ("status", "gpt-j"),
            ("scale", "gpt-j", "--max", "2"),
            ("invoke", "gpt-j", "In the beginning"),
            ("invoke", "http://127.0.0.1:9", "In the beginning"),
            ("delete", "gpt-j", "--all", "--yes"),
        )
    assert "sagemaker.create_endpoint " in plan.out
    assert deployed.json["status"] == "InService"
    assert "InService" in status.out
    assert scale.code == 0
    assert asked.out == " and the earth\n"
    assert refused.err.startswith("error: nothing listens")
    assert deleted.code == 0
