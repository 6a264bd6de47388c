"""A push that is interrupted at any step is finished by the next one, and leaves nothing else."""

import json
import os
import signal

import pytest

from gptj_serve.aws.common.clients import Aws
from support.aws import interruption
from support.aws.docker_engine import Engine
from support.aws.killed_commands import Killer
from support.aws.run_commands import call, finish, start

NUM_STEPS = 8
"""Create, expire, authorize, login, name, push, unname, look up."""


def check_end_state(aws: Aws, engine: Engine, image_id: str) -> None:
    """What an undisturbed push makes, and nothing else."""
    ecr = aws.client("ecr")
    (found,) = ecr.describe_repositories()["repositories"]
    assert (found["repositoryName"], found["imageTagMutability"]) == ("gptj-serve", "IMMUTABLE")
    assert found["imageScanningConfiguration"]["scanOnPush"]
    (tag,) = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
    assert tag == {"Key": "gptj-serve:repository", "Value": "gptj-serve"}
    assert "untagged" in ecr.get_lifecycle_policy(repositoryName="gptj-serve")["lifecyclePolicyText"]
    (image,) = ecr.describe_images(repositoryName="gptj-serve")["imageDetails"]
    assert image["imageTags"] == [f"0.1.0-{image_id[7:19]}"]
    assert engine.names(image_id) == ["gptj-serve:latest"]
    assert engine.leftovers == []


def push_again(aws: Aws, engine: Engine, image_id: str) -> None:
    """The same command once more does the rest."""
    uri = call("push", "--json").json["image_uri"]
    check_end_state(aws, engine, image_id)
    assert uri.startswith("123456789012.dkr.ecr.eu-west-1.amazonaws.com/gptj-serve@sha256:")


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_before_each_step(aws: Aws, engine: Engine, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    image_id = engine.add_image()
    with monkeypatch.context() as patches:
        interruption.Interruption(step, signal.SIGINT, patches.setattr)
        result = call("push")
    assert (result.code, result.out) == (130, "")
    assert "Run the same command again" in result.err
    assert engine.leftovers == []
    push_again(aws, engine, image_id)


def test_there_are_no_more_steps(aws: Aws, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    image_id = engine.add_image()
    with monkeypatch.context() as patches:
        planned = interruption.Interruption(NUM_STEPS + 1, signal.SIGINT, patches.setattr)
        assert call("push").code == 0
    assert not planned.is_done
    check_end_state(aws, engine, image_id)


@pytest.mark.parametrize("step", range(1, NUM_STEPS + 1))
def test_killed_before_each_step(aws: Aws, engine: Engine, killer: Killer, step: int) -> None:
    image_id = engine.add_image()
    assert killer.run("step", step, "push") == (-signal.SIGKILL, "")
    push_again(aws, engine, image_id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_while_layers_are_sent(aws: Aws, engine: Engine, number: signal.Signals) -> None:
    image_id = engine.add_image()
    engine.wish(push="hang")
    process = start("push")
    docker = engine.hanging()
    (folder,) = engine.leftovers
    assert folder.stat().st_mode & 0o077 == 0  # the token is in there
    assert json.loads((folder / "config.json").read_text())["auths"]
    process.send_signal(number)
    if number == signal.SIGKILL:
        os.kill(docker, signal.SIGKILL)
    result = finish(process)
    assert result.out == ""
    if number == signal.SIGKILL:
        assert engine.leftovers == [folder]
    else:
        assert (result.code, engine.leftovers) == (130, [])
        assert "Run the same command again" in result.err
        with pytest.raises(ProcessLookupError):
            os.kill(docker, 0)
    engine.wish()
    push_again(aws, engine, image_id)
