"""``scripts/scale`` against moto, over HTTP."""

from typing import Any

import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import autoscaling
from support.aws.cut_commands import cut_off_again_and_again
from support.aws.made_endpoints import make_endpoint, scaling
from support.aws.run_commands import call, command


def test_the_same_arguments_again_change_nothing(aws: Aws) -> None:
    make_endpoint(aws, environment={"GPTJ_MAX_BATCH_SIZE": "4"})
    first = call("scale", "gpt-j", "--max", "4", "--json").json
    assert first["changed"] is True
    assert (first["smallest"], first["largest"], first["target"]) == (1, 4, 2.0)
    assert "GPTJ_MAX_BATCH_SIZE=4" in first["why"]
    before = scaling(aws)
    assert call("scale", "gpt-j", "--max", "4", "--json").json == {**first, "changed": False}
    assert scaling(aws) == before
    assert before[0] == [("endpoint/gpt-j/variant/main", 1, 4)]


def test_a_target_of_ones_own(aws: Aws) -> None:
    make_endpoint(aws)
    arguments = ["gpt-j", "--min", "2", "--max", "8", "--target", "20", "--in-cooldown", "900"]
    result = call("scale", *arguments)
    assert (
        result.out.strip()
        == "gpt-j scales from 2 to 8 instances, at 20 requests inside each at once (as asked for)."
    )
    (policy,) = scaling(aws)[1]
    assert "'TargetValue': 20.0" in policy[2]
    assert "'ScaleInCooldown': 900" in policy[2]


def test_to_zero_and_back(aws: Aws) -> None:
    make_endpoint(aws, component=True)
    call("scale", "gpt-j", "--max", "2", "--to-zero").check()
    targets, policies, alarms = scaling(aws)
    assert targets == [("inference-component/gpt-j", 0, 2)]
    assert [one[0] for one in policies] == [autoscaling.FOLLOW_POLICY, autoscaling.WAKE_POLICY]
    assert alarms == [("gptj-serve/gpt-j/from-zero", [autoscaling.WAKE_POLICY])]
    assert "It was so already" in call("scale", "gpt-j", "--max", "2", "--to-zero").out
    assert call("scale", "gpt-j", "--off").code == 0
    assert scaling(aws) == ([], [], [])
    assert "It was so already" in call("scale", "gpt-j", "--off").out


def test_an_asynchronous_endpoint_follows_its_backlog(aws: Aws) -> None:
    make_endpoint(aws, asynchronous=True)
    assert call("scale", "gpt-j", "--max", "2", "--to-zero").code == 0
    targets, policies, alarms = scaling(aws)
    assert targets == [("endpoint/gpt-j/variant/main", 0, 2)]
    assert "ApproximateBacklogSizePerInstance" in policies[0][2]
    assert len(alarms) == 1


def test_a_dry_run_changes_nothing_and_shows_every_call(aws: Aws) -> None:
    make_endpoint(aws, component=True)
    plan = call("scale", "gpt-j", "--max", "2", "--to-zero", "--dry-run", "--json").json
    assert scaling(aws) == ([], [], [])
    operations = ["register_scalable_target", "put_scaling_policy", "put_scaling_policy", "put_metric_alarm"]
    assert [step["operation"] for step in plan["steps"]] == operations


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "its variant has the model itself"),
        ({"component": True, "least": 1}, "at least 1 instances"),
    ],
)
def test_what_cannot_shrink_to_zero_says_why(aws: Aws, how: dict[str, Any], reason: str) -> None:
    make_endpoint(aws, **how)
    result = call("scale", "gpt-j", "--max", "2", "--to-zero")
    assert result.code == 1
    assert reason in result.err
    assert "docs/operations.md" in result.err
    assert scaling(aws) == ([], [], [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--max is missing"),
        (["--max", "0"], "--max 0: must be 1 or more"),
        (["--max", "2", "--min", "3"], "--min 3: must be from 0 to --max 2"),
        (["--max", "2", "--target", "0"], "--target 0.0: must be above 0"),
        (["--max", "2", "--target", "inf"], "--target inf: must be above 0"),
        (["--max", "2", "--in-cooldown", "4000"], "--in-cooldown 4000: must be from 0 to 3600"),
        (["--max", "2", "--request-tokens", "0"], "--request-tokens 0: must be from 1 to 2048"),
        (["--max", "2", "--min", "1", "--to-zero"], "exclude each other"),
        (["--max", "2", "--off"], "--off ends all scaling"),
        (["--max", "many"], "invalid int value"),
    ],
)
def test_bad_arguments_are_named_before_aws_is_asked(arguments: list[str], said: str) -> None:
    result = call("scale", "gpt-j", *arguments)
    assert result.code == 2
    assert said in result.err


def test_more_copies_than_there_is_room_for(aws: Aws) -> None:
    make_endpoint(aws, component=True)  # 2 instances at most
    result = call("scale", "gpt-j", "--max", "3")
    assert result.code == 2
    assert "--max 3: gpt-j has room for 2 copies" in result.err


@pytest.mark.usefixtures("aws")
def test_an_endpoint_that_is_not_there() -> None:
    result = call("scale", "gpt-j", "--max", "2")
    assert result.code == 1
    assert "there is no endpoint gpt-j in eu-west-1" in result.err


def test_an_endpoint_that_is_not_ready(aws: Aws) -> None:
    make_endpoint(aws, status="Creating")
    result = call("scale", "gpt-j", "--max", "2")
    assert result.code == 1
    assert "gpt-j is Creating" in result.err


def test_interrupted_anywhere_and_run_again_ends_the_same(aws: Aws) -> None:
    make_endpoint(aws, component=True)
    arguments = ["gpt-j", "--max", "2", "--to-zero"]
    call("scale", *arguments)
    wanted = scaling(aws)
    assert cut_off_again_and_again(lambda: call("scale", "gpt-j", "--off")) == 4
    assert scaling(aws) == ([], [], [])
    assert cut_off_again_and_again(lambda: call("scale", *arguments)) == 4
    assert scaling(aws) == wanted


def test_as_a_process(aws: Aws) -> None:
    make_endpoint(aws)
    assert command("scale", "gpt-j", "--max", "3", "--json").json["largest"] == 3
