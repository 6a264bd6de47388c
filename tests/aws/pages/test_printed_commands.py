"""The commands that docs/deploying.md and docs/operations.md print, run as they are, from top to bottom."""

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gptj_serve import demo
from gptj_serve.aws import upload_model
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import removal, waiting
from gptj_serve.benchmark.front import fake_service
from support import tiny_model as tiny
from support.aws import sagemaker_runtime as fake
from support.aws.deploy_account import FakeTime, push_image
from support.aws.docker_engine import Engine
from support.aws.run_commands import Result, call
from support.server import ROOT

LOCAL = "http://127.0.0.1:8080"
FILES = {"prompt.txt": "In the beginning\n", "request.json": json.dumps({"inputs": "In the beginning"})}


def printed(page: str) -> list[str]:
    """The command lines of a page, without what is remarked on them."""
    text = (ROOT / f"docs/{page}.md").read_text()
    return re.findall(r"^    (?:IMAGE=\$\()?(scripts/.+?)\)?(?:\s+#.*)?$", text, re.MULTILINE)


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where the service runs on this machine."""
    with fake_service.running("http", 1000, tmp_path_factory.mktemp("engine") / "log") as service:
        yield service.port


@pytest.fixture
def data(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a reader has: a model in the home directory and in S3, a prompt and a request."""
    home = tmp_path / "home"
    model = tiny.write_model(home / "gpt-j-6b", dtype=tiny.torch.float16)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).write_bytes((demo.MODEL_DIR / name).read_bytes())
    for name, text in FILES.items():
        (home / name).write_text(text)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setattr(upload_model, "GPT_J", str(model))  # there is no hub
    where = {"LocationConstraint": aws.region}
    aws.client("s3").create_bucket(Bucket="my-bucket", CreateBucketConfiguration=where)
    return call("upload_model", str(model), "--to", "s3://my-bucket/gpt-j-6b/").out.strip()


@pytest.fixture(autouse=True)
def _answers_come_at_once(port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    clock = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(clock.now, clock.sleep))
    monkeypatch.setattr(removal, "POLL_S", 0.01)
    with fake.running(fake.passing_on(port)) as runtime:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", runtime.url)
        yield


def run(line: str, given: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Result:
    """A line as a shell would run it, for a person who confirms what is asked.

    Args:
        line: As it is printed.
        given: What stands for "…" and for another command's output, by the option before it.
        monkeypatch: Gives it its stdin.
    """
    script, *words = shlex.split(line.replace(LOCAL, given[LOCAL]))
    terminal = io.StringIO("gpt-j\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    if "<" in words:
        terminal = io.StringIO(Path(words[-1]).read_text())
        words = words[:-2]
    monkeypatch.setattr(sys, "stdin", terminal)
    arguments = [
        given[before] if "…" in word or word.startswith("$(") else word
        for before, word in pairwise([script, *words])
    ]
    expanded = [str(Path(one).expanduser()) if one.startswith("~") else one for one in arguments]
    return call(script.removeprefix("scripts/").replace("-", "_"), *expanded)


@pytest.mark.parametrize("page", ["deploying", "operations"])
def test_every_command_works(
    page: str, aws: Aws, data: str, engine: Engine, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_image()
    image = push_image(aws, "one")
    endpoint = ("--image", image, "--model-data", data, "--create-role")
    assert call("deploy", "gpt-j", *endpoint).code == 0
    if page == "deploying":  # which names it, and leaves its making to the other page
        assert call("deploy", "gpt-j-idle", *endpoint, "--to-zero").code == 0
    given = {"--image": image, "--model-data": data, LOCAL: f"http://127.0.0.1:{port}"}
    lines = printed(page)
    assert len(lines) >= 6
    for line in lines:
        result = run(line, given, monkeypatch)
        assert result.code == 0, f"{line}\n{result.err}"
