"""Scripts install the extra ``deploy`` alone: commands are run where nothing else can be imported."""

import json
import os
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
from support.aws.run_commands import Result, finish

WITHOUT_THE_REST = """
import runpy, sys
there = {*sys.argv.pop(1).split(","), *sys.stdlib_module_names}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if path is None and name not in there:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder)
runpy.run_module("gptj_serve.aws", run_name="__main__")
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


def run(*arguments: str, also: tuple[str, ...] = ()) -> Result:
    """A command, with the modules that its script has installed."""
    argv = [sys.executable, "-c", WITHOUT_THE_REST, ",".join([*MODULES, *also]), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        argv, env=os.environ, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )
    return finish(process)


def test_the_extra_brings_what_talks_to_aws_and_not_what_serves() -> None:
    assert {"boto3", "botocore", "huggingface_hub", "tqdm"} <= MODULES
    assert {"torch", "transformers", "tokenizers", "numpy"} & MODULES == set()


@pytest.mark.parametrize("name", ["build", "push", "deploy", "invoke", "scale", "status", "delete"])
def test_help(name: str) -> None:
    assert f"usage: scripts/{name}" in run(name, "--help").out


def test_uploading_models_shows_its_help_without_pytorch() -> None:
    assert "usage: scripts/upload-model" in run("upload_model", "--help", also=("tokenizers",)).out


@pytest.mark.usefixtures("aws")
def test_building_and_pushing(engine: Engine) -> None:
    engine.add_image()
    assert "docker" in run("build", "--dry-run").out
    assert run("push", "--json").json["pushed"]


def test_from_deploying_to_deleting(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    upload(aws)
    deploy = ("deploy", "--image", push_image(aws, "one"), "--model-data", DATA, "--role", ROLE)
    assert "sagemaker.create_endpoint " in run(*deploy, "--dry-run").out
    assert run(*deploy, "--json").json["status"] == "InService"
    assert "InService" in run("status", "gpt-j").out
    assert run("scale", "gpt-j", "--max", "2").code == 0
    text = json.dumps([{"generated_text": " and the earth"}]).encode()
    with fake.running(lambda _: fake.Answer(200, (text,))) as runtime:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", runtime.url)
        assert run("invoke", "gpt-j", "In the beginning").out == " and the earth\n"
    assert run("invoke", "http://127.0.0.1:9", "In the beginning").err.startswith("error: nothing listens")
    assert run("delete", "gpt-j", "--all", "--yes").code == 0
