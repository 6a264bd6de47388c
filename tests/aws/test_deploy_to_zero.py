"""``scripts/deploy --to-zero``: the model as an inference component, from nothing to one that has shrunk."""

import time
from typing import Any

import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import removal, waiting
from gptj_serve.aws.endpoint.deploying import deployment as deploy_module
from support.aws import moto_components
from support.aws.cut_commands import cut_off_everywhere
from support.aws.deploy_account import NOTHING, FakeTime, deploy, push_image, state, upload
from support.aws.moto_components import components
from support.aws.moto_sagemaker import script
from support.aws.permission_checks import granted, needed, recorded
from support.aws.run_commands import call


@pytest.fixture(autouse=True)
def _time_passes_at_once(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(removal, "POLL_S", 0.01)
    monkeypatch.setattr(deploy_module, "connect", lambda *_: aws)
    upload(aws)


def whole(aws: Aws) -> dict[str, Any]:
    """All there is, with the component's model."""
    models = {name: one["Specification"]["ModelName"] for name, one in components().items()}
    return {**state(aws), "components": models}


NOTHING_LEFT: dict[str, Any] = {**NOTHING, "components": {}}


def test_a_pool_without_a_model_and_the_model_on_it(aws: Aws) -> None:
    result = deploy(push_image(aws, "one"), "--to-zero", "--max-count", "2", "--json")
    assert result.json["status"] == "InService"
    made = whole(aws)
    (model,) = made["models"]
    assert made["components"] == {"gpt-j": model}
    assert len(made["alarms"]) == 4
    alarms = aws.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert {str(one["Dimensions"]) for one in alarms} == {
        "[{'Name': 'InferenceComponentName', 'Value': 'gpt-j'}]"
    }
    (variant,) = aws.client("sagemaker").describe_endpoint_config(EndpointConfigName=made["config"])[
        "ProductionVariants"
    ]
    managed = {"Status": "ENABLED", "MinInstanceCount": 0, "MaxInstanceCount": 2}
    assert variant["ManagedInstanceScaling"] == managed
    assert "ModelName" not in variant
    assert "ContainerStartupHealthCheckTimeoutInSeconds" not in variant
    assert variant["InferenceAmiVersion"]
    specification = components()["gpt-j"]["Specification"]
    assert specification["StartupParameters"]["ContainerStartupHealthCheckTimeoutInSeconds"] >= 60
    assert specification["ComputeResourceRequirements"]["NumberOfAcceleratorDevicesRequired"] == 1


def test_the_same_again_changes_nothing(aws: Aws) -> None:
    image = push_image(aws, "one")
    deploy(image, "--to-zero")
    before = whole(aws)
    result = deploy(image, "--to-zero", "--json")
    assert result.json["change"] == "none"
    assert whole(aws) == before


def test_it_says_what_to_do_next(aws: Aws) -> None:
    said = deploy(push_image(aws, "one"), "--to-zero").out
    assert "scripts/invoke gpt-j --component gpt-j" in said
    assert "scripts/scale gpt-j --max 4 --to-zero" in said


def test_the_whole_road(aws: Aws) -> None:
    deploy(push_image(aws, "one"), "--to-zero")
    assert call("scale", "gpt-j", "--max", "4", "--to-zero").code == 0
    assert "0 to 4 copies" in call("status", "gpt-j").out
    assert call("delete", "gpt-j").code == 0
    assert whole(aws) == NOTHING_LEFT


def test_a_new_image_changes_the_component_in_place(aws: Aws) -> None:
    deploy(push_image(aws, "one"), "--to-zero")
    before = whole(aws)
    result = deploy(push_image(aws, "two"), "--to-zero", "--json")
    after = whole(aws)
    assert result.json["change"] == "update"
    assert after["config"] == before["config"]
    assert after["models"] != before["models"]
    assert after["components"] == {"gpt-j": after["models"][0]}


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ([], ["--to-zero"], "has the model itself"),
        (["--to-zero"], ["--to-zero", "--instance-type", "ml.g5.2xlarge"], "has other instances"),
        (["--to-zero"], [], "made with --to-zero"),
    ],
)
def test_what_cannot_be_changed_is_refused(aws: Aws, first: list[str], then: list[str], said: str) -> None:
    image = push_image(aws, "one")
    assert deploy(image, *first).code == 0
    before = whole(aws)
    result = deploy(image, *then)
    assert result.code == 1
    assert said in result.err
    assert "scripts/delete gpt-j" in result.err
    assert whole(aws) == before


def test_a_dry_run_changes_nothing(aws: Aws) -> None:
    result = deploy(push_image(aws, "one"), "--to-zero", "--dry-run", "--json")
    operations = [one["operation"] for one in result.json["actions"]]
    assert operations == [
        "create_model",
        "create_endpoint_config",
        *["put_metric_alarm"] * 4,
        "create_endpoint",
        "create_inference_component",
    ]
    assert whole(aws) == NOTHING_LEFT


def test_an_endpoint_that_fails_takes_all_away(aws: Aws) -> None:
    script.creations = ["it failed"]
    result = deploy(push_image(aws, "one"), "--to-zero")
    assert result.code == 1
    assert "it failed" in result.err
    assert whole(aws) == NOTHING_LEFT


def test_a_component_that_fails_takes_all_away_and_says_why(aws: Aws) -> None:
    group = "/aws/sagemaker/InferenceComponents/gpt-j"
    logs = aws.client("logs")
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="a")
    event = {"timestamp": int(time.time() * 1000), "message": "no such model"}
    logs.put_log_events(logGroupName=group, logStreamName="a", logEvents=[event])
    moto_components.failures.append("The container did not pass the ping health check")
    result = deploy(push_image(aws, "one"), "--to-zero")
    assert result.code == 1
    assert "did not pass the ping health check" in result.err
    assert "no such model" in result.err
    assert whole(aws) == NOTHING_LEFT


def test_keep_leaves_a_failure_to_be_looked_at(aws: Aws) -> None:
    moto_components.failures.append("it failed")
    image = push_image(aws, "one")
    assert deploy(image, "--to-zero", "--keep").code == 1
    assert components()["gpt-j"]["InferenceComponentStatus"] == "Failed"
    assert deploy(image, "--to-zero").code == 0
    assert components()["gpt-j"]["InferenceComponentStatus"] == "InService"


def test_an_update_that_fails_leaves_what_served(aws: Aws) -> None:
    deploy(push_image(aws, "one"), "--to-zero")
    before = whole(aws)
    moto_components.failures.append("it failed")
    result = deploy(push_image(aws, "two"), "--to-zero")
    assert result.code == 1
    assert "the update was called off: it failed" in result.err
    assert whole(aws) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-count", "2"], "--max-count: only with --to-zero"),
        (["--to-zero", "--async-output", "s3://models/out/"], "--to-zero: not with --async-output"),
        (["--to-zero", "--count", "5"], "--count 5: more than --max-count 4"),
    ],
)
def test_bad_arguments(aws: Aws, arguments: list[str], said: str) -> None:
    result = deploy(push_image(aws, "one"), *arguments)
    assert result.code == 2
    assert said in result.err


def test_cut_off_anywhere_and_run_again_ends_the_same(aws: Aws) -> None:
    image = push_image(aws, "one")
    deploy(image, "--to-zero")
    wanted = whole(aws)
    call("delete", "gpt-j")
    for _ in cut_off_everywhere(lambda: deploy(image, "--to-zero")):
        assert deploy(image, "--to-zero").code == 0
        assert whole(aws) == wanted
        call("delete", "gpt-j")


def test_an_update_cut_off_anywhere(aws: Aws) -> None:
    one, two = push_image(aws, "one"), push_image(aws, "two")
    deploy(two, "--to-zero")
    wanted = whole(aws)
    deploy(one, "--to-zero")
    for _ in cut_off_everywhere(lambda: deploy(two, "--to-zero")):
        assert deploy(two, "--to-zero").code == 0
        assert whole(aws) == wanted
        deploy(one, "--to-zero")


def test_its_policy_says_what_it_does_and_no_more(aws: Aws) -> None:
    one, two = push_image(aws, "one"), push_image(aws, "two")
    with recorded() as calls:
        moto_components.failures.append("it failed")
        deploy(one, "--to-zero")
        deploy(one, "--to-zero")
        deploy(two, "--to-zero")
    more = granted("deploy --to-zero")
    assert needed(calls) - granted("deploy") == more - granted("deploy")
    assert more <= needed(calls)


UPDATE = "update_inference_component"


def planned_update(aws: Aws, *arguments: str, copies: int = 1) -> Any:
    """The update of a component that has so many copies, as a dry run shows it."""
    image = push_image(aws, "one")
    deploy(image, "--to-zero", *arguments)
    components()["gpt-j"]["RuntimeConfig"] = {"DesiredCopyCount": copies, "CurrentCopyCount": copies}
    result = deploy(push_image(aws, "two"), "--to-zero", *arguments, "--dry-run", "--json")
    if result.code:
        return result.err
    (found,) = [one["request"] for one in result.json["actions"] if one["operation"] == UPDATE]
    return found["DeploymentConfig"]


@pytest.mark.parametrize(
    ("arguments", "copies", "batch"),
    [
        ([], 0, 1),
        ([], 1, 1),
        (["--max-count", "40"], 20, 10),
        (["--max-count", "40", "--traffic", "canary"], 20, 2),
        (["--max-count", "22"], 20, 2),
    ],
)
def test_an_update_rolls_and_is_watched(aws: Aws, arguments: list[str], copies: int, batch: int) -> None:
    found = planned_update(aws, *arguments, copies=copies)
    rolling = found["RollingUpdatePolicy"]
    assert rolling["MaximumBatchSize"] == {"Type": "COPY_COUNT", "Value": batch}
    assert rolling["WaitIntervalInSeconds"] == 300
    names = [one["AlarmName"] for one in found["AutoRollbackConfiguration"]["Alarms"]]
    assert len(names) == 4
    assert set(names) == set(whole(aws)["alarms"])


def test_without_alarms_it_only_rolls(aws: Aws) -> None:
    assert "AutoRollbackConfiguration" not in planned_update(aws, "--no-alarms", "--bake-s", "0")


def test_an_update_that_would_find_no_gpu(aws: Aws) -> None:
    said = planned_update(aws, "--max-count", "3", copies=3)
    assert "gpt-j has 3 copies, one on each of its 3 GPUs" in said
    assert "scripts/scale gpt-j --max 2" in said


def test_an_alarm_that_is_on_holds_an_update_up(aws: Aws) -> None:
    deploy(push_image(aws, "one"), "--to-zero")
    name = "gptj-serve/gpt-j/update-server-errors"
    aws.client("cloudwatch").set_alarm_state(AlarmName=name, StateValue="ALARM", StateReason="test")
    before = whole(aws)
    assert f"{name}: in alarm now" in deploy(push_image(aws, "two"), "--to-zero").err
    assert whole(aws) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-count", "1"], "--max-count 1: an update starts a new copy beside the old one"),
        (["--instance-type", "ml.m5.xlarge"], "--to-zero: a copy of the model takes a GPU"),
        (["--instance-type", "ml.g4dn.12xlarge", "--max-count", "1"], ""),
    ],
)
def test_a_pool_needs_room_for_an_update(aws: Aws, arguments: list[str], said: str) -> None:
    result = deploy(push_image(aws, "one"), "--to-zero", *arguments, "--dry-run")
    assert result.code == (2 if said else 0)
    assert said in result.err
    assert "uses one of them" not in result.err  # a component is on each


@pytest.mark.parametrize(
    ("status", "operations"),
    [("Creating", [UPDATE]), ("Updating", [UPDATE]), ("Deleting", ["create_inference_component"])],
)
def test_a_dry_run_says_what_it_waits_for(aws: Aws, status: str, operations: list[str]) -> None:
    deploy(push_image(aws, "one"), "--to-zero")
    components()["gpt-j"].update(InferenceComponentStatus=status, then=status)
    plan = deploy(push_image(aws, "two"), "--to-zero", "--dry-run", "--json").json
    assert plan["waits_for"] == [f"component gpt-j is {status}"]
    found = [one["operation"] for one in plan["actions"] if "inference_component" in one["operation"]]
    assert found == operations
