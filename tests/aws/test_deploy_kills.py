"""``scripts/deploy`` is cut off after each call that changes something; run again, it ends up the same.

Ctrl-C comes as KeyboardInterrupt. `Killed` stands for SIGKILL: no handler of the command sees it.
"""

import signal
from collections.abc import Callable

import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import waiting
from gptj_serve.aws.endpoint.deploying import deployment as deploy_module
from support.aws.deploy_account import (
    DATA,
    ROLE,
    FakeTime,
    answers_lost,
    cut_off,
    deploy,
    push_image,
    state,
    upload,
)
from support.aws.moto_sagemaker import script
from support.aws.permission_checks import CHANGES, recorded
from support.aws.run_commands import finish, start
from support.server import until

Act = Callable[[], object]


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def shared(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    """All runs share their clients, and time passes at once."""
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(deploy_module, "connect", lambda *_: aws)
    return aws


def wipe(aws: Aws) -> None:
    """Take everything away that a deployment makes."""
    sagemaker, cloudwatch = aws.client("sagemaker"), aws.client("cloudwatch")
    for one in sagemaker.list_endpoints()["Endpoints"]:
        sagemaker.delete_endpoint(EndpointName=one["EndpointName"])
    for one in sagemaker.list_endpoint_configs()["EndpointConfigs"]:
        sagemaker.delete_endpoint_config(EndpointConfigName=one["EndpointConfigName"])
    for one in sagemaker.list_models()["Models"]:
        sagemaker.delete_model(ModelName=one["ModelName"])
    alarms = cloudwatch.describe_alarms()["MetricAlarms"]
    cloudwatch.delete_alarms(AlarmNames=[one["AlarmName"] for one in alarms])


def check_every_cut(aws: Aws, by: type[BaseException], prepare: Act, act: Act, num_calls: int) -> None:
    """Cut an act off after each of its calls, act again, and compare with what it does undisturbed.

    Args:
        aws: Where.
        by: What cuts it off.
        prepare: What was done before.
        act: What is cut off.
        num_calls: How many calls it makes that change something.
    """
    prepare()
    with recorded() as calls:
        act()
    assert sum(name.startswith(CHANGES) for _, name in calls) == num_calls, calls
    wanted = state(aws)
    for after in range(1, num_calls + 1):
        wipe(aws)
        prepare()
        with cut_off(after, by):
            try:
                act()
            except Killed:
                assert by is Killed
        act()
        assert state(aws) == wanted, f"after {after} calls"


@pytest.mark.parametrize("by", [KeyboardInterrupt, Killed])
def test_the_first_deployment(shared: Aws, by: type[BaseException]) -> None:
    upload(shared)
    image = push_image(shared, "one")
    check_every_cut(shared, by, lambda: None, lambda: deploy(image), 7)


@pytest.mark.parametrize("by", [KeyboardInterrupt, Killed])
def test_an_update(shared: Aws, by: type[BaseException]) -> None:
    upload(shared)
    old, new = push_image(shared, "one"), push_image(shared, "two")
    check_every_cut(shared, by, lambda: deploy(old), lambda: deploy(new), 5)


def test_an_update_that_is_given_up_for_another(shared: Aws) -> None:
    upload(shared)
    images = [push_image(shared, tag) for tag in ("one", "two", "three")]
    deploy(images[0])
    for after in range(1, 6):
        images = images[1:] + images[:1]
        with cut_off(after, Killed), pytest.raises(Killed):
            deploy(images[0])
        images = images[1:] + images[:1]
        assert deploy(images[0]).code == 0
        left = state(shared)
        assert (left["all configs"], left["all models"]) == (1, 1)


def test_lost_answers_do_no_harm(shared: Aws) -> None:
    upload(shared)
    images = [push_image(shared, tag) for tag in ("one", "two")]
    script.num_busy = 1
    with answers_lost():
        first = deploy(images[0], "--json")
        second = deploy(images[1], "--json", "--create-role", role=None)
    assert second.json["status"] == "InService"
    assert first.json["status"] == "InService"
    left = state(shared)
    assert (left["status"], left["all configs"], left["all models"]) == ("InService", 1, 1)


def test_a_failure_while_it_takes_back_what_it_made(shared: Aws) -> None:
    upload(shared)
    image = push_image(shared, "one")

    def fail() -> None:
        script.creations = ["no"]
        deploy(image)

    def succeed() -> None:
        script.creations = []
        deploy(image)

    # five calls to make it, four to take it back
    for after in range(1, 10):
        wipe(shared)
        with cut_off(after, Killed), pytest.raises(Killed):
            fail()
        succeed()
        left = state(shared)
        assert (left["status"], left["all configs"], left["all models"]) == ("InService", 1, 1)


def test_ctrl_c_says_that_it_goes_on(shared: Aws) -> None:
    upload(shared)
    image = push_image(shared, "one")
    with cut_off(2, KeyboardInterrupt):
        result = deploy(image)
    assert result.code == 130
    assert "Run the same command again: it goes on" in result.err
    assert len(state(shared)["configs"]) == 1  # nothing is taken back: it is needed again


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_real_signals_while_the_endpoint_is_being_made(aws: Aws, number: signal.Signals) -> None:
    upload(aws)
    image = push_image(aws, "one")
    script.num_busy = 1_000_000
    arguments = ("--image", image, "--model-data", DATA, "--role", ROLE)
    process = start("deploy", *arguments)
    sagemaker = aws.client("sagemaker")
    until(lambda: sagemaker.list_endpoints()["Endpoints"] or process.poll() is not None)
    assert process.poll() is None
    process.send_signal(number)
    result = finish(process)
    assert result.code == (130 if number is signal.SIGINT else -signal.SIGKILL)
    assert state(aws)["status"] == "Creating"
    script.finish()
    again = deploy(image, "--json")
    assert again.json["change"] == "none"
    left = state(aws)
    assert (left["status"], left["all configs"], left["all models"]) == ("InService", 1, 1)
