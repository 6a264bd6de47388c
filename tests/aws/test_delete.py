"""``scripts/delete`` against moto, over HTTP: nothing of ours stays, and nothing of others goes."""

import dataclasses
import io
import signal
import sys
import threading
import time
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import autoscaling, removal, waiting
from gptj_serve.aws.endpoint.inventory import take_inventory
from gptj_serve.aws.endpoint.kinds import ENDPOINT
from support.aws import moto_components
from support.aws.cut_commands import cut_off_again_and_again
from support.aws.deploy_account import FakeTime
from support.aws.made_endpoints import (
    BUCKET,
    DATA,
    REPOSITORY,
    endpoint_in_moto,
    make_belongings,
    make_endpoint,
)
from support.aws.run_commands import call, command, finish, start


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "POLL_S", 0.01)


def everything(aws: Aws) -> dict[str, list[str]]:
    """Names of all there is in the account, by kind."""
    sagemaker, s3 = aws.client("sagemaker"), aws.client("s3")
    scaling = aws.client(autoscaling.SERVICE)
    buckets = [one["Name"] for one in s3.list_buckets()["Buckets"]]
    return {
        "endpoints": [one["EndpointName"] for one in sagemaker.list_endpoints()["Endpoints"]],
        "configs": [
            one["EndpointConfigName"] for one in sagemaker.list_endpoint_configs()["EndpointConfigs"]
        ],
        "models": [one["ModelName"] for one in sagemaker.list_models()["Models"]],
        "components": list(moto_components.components()),
        "targets": [
            one["ResourceId"]
            for one in scaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
        ],
        "policies": [
            one["PolicyName"]
            for one in scaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
        ],
        "alarms": [one["AlarmName"] for one in aws.client("cloudwatch").describe_alarms()["MetricAlarms"]],
        "objects": [
            one["Key"] for bucket in buckets for one in s3.list_objects_v2(Bucket=bucket).get("Contents", [])
        ],
        "repositories": [
            one["repositoryName"] for one in aws.client("ecr").describe_repositories()["repositories"]
        ],
    }


def make_all(aws: Aws, name: str = "gpt-j", *, component: bool = True) -> None:
    """An endpoint with all that may belong to it."""
    make_endpoint(aws, name, component=component)
    scale = ["--to-zero"] if component else []
    assert call("scale", name, "--max", "2", *scale).code == 0


@pytest.mark.parametrize("component", [True, False], ids=["component", "model"])
def test_nothing_stays(aws: Aws, component: bool) -> None:
    nothing = everything(aws)
    make_all(aws, component=component)
    result = call("delete", "gpt-j")
    assert result.code == 0
    assert result.out == "gpt-j is gone.\n"
    assert everything(aws) == nothing


def test_what_is_gone_already_is_no_error(aws: Aws) -> None:
    result = call("delete", "gpt-j")
    assert result.code == 0
    assert "Nothing of gpt-j was there" in result.out
    make_all(aws)
    aws.client("sagemaker").delete_model(ModelName="gpt-j-0a1b2c3d")
    aws.client("sagemaker").delete_inference_component(InferenceComponentName="gpt-j")
    aws.client("sagemaker").delete_endpoint(EndpointName="gpt-j")
    assert call("delete", "gpt-j").code == 0
    assert not any(everything(aws).values())


def test_what_goes_while_it_is_deleted_is_no_error(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    make_all(aws)
    apply = removal.Action.apply

    def twice(action: removal.Action, where: Aws) -> dict[str, Any]:
        apply(action, where)
        return apply(action, where)

    monkeypatch.setattr(removal.Action, "apply", twice)
    assert call("delete", "gpt-j").code == 0
    assert take_inventory(aws, "gpt-j").is_empty


def test_earlier_versions_go_too_and_what_others_made_stays(aws: Aws) -> None:
    make_endpoint(aws, "gpt-j-2")
    make_endpoint(aws, "other", tagged=False)
    make_endpoint(aws, "gpt-j", digits="11111111")
    aws.client("sagemaker").delete_endpoint(EndpointName="gpt-j")
    make_endpoint(aws, "gpt-j", digits="22222222")
    call("scale", "gpt-j-2", "--max", "2")
    assert call("delete", "gpt-j").code == 0
    left = everything(aws)
    assert left["endpoints"] == ["gpt-j-2", "other"]
    assert sorted(left["models"]) == sorted(left["configs"]) == ["gpt-j-2-0a1b2c3d", "other-0a1b2c3d"]
    assert left["targets"] == ["endpoint/gpt-j-2/variant/main"]


def test_an_endpoint_that_we_did_not_make_is_left_alone(aws: Aws) -> None:
    make_endpoint(aws, tagged=False)
    before = everything(aws)
    result = call("delete", "gpt-j", "--all", "--yes")
    assert result.code == 1
    assert "was not made by scripts/deploy" in result.err
    assert everything(aws) == before


def test_a_dry_run_lists_and_changes_nothing(aws: Aws) -> None:
    make_all(aws)
    make_belongings(aws)
    before = everything(aws)
    steps = call("delete", "gpt-j", "--all", "--dry-run", "--json").json["steps"]
    assert everything(aws) == before
    assert [step["operation"] for step in steps] == [
        "delete_scaling_policy",
        "delete_scaling_policy",
        "deregister_scalable_target",
        "delete_inference_component",
        "delete_endpoint",
        "delete_objects",
        "delete_repository",
        "delete_alarms",
        "delete_endpoint_config",
        "delete_model",
    ]


class TestAll:
    def test_only_what_was_uploaded_goes(self, aws: Aws) -> None:
        make_all(aws, component=False)
        make_belongings(aws)
        aws.client("s3").put_object(Bucket=BUCKET, Key="gpt-j-6b/notes.txt", Body=b"mine")
        assert call("delete", "gpt-j", "--all", "--yes").code == 0
        left = everything(aws)
        assert left.pop("objects") == ["gpt-j-6b/notes.txt"]
        assert not any(left.values())

    def test_an_archive(self, aws: Aws) -> None:
        make_endpoint(aws, data="s3://models/gpt-j-6b/model.tar.gz")
        make_belongings(aws, is_tar=True)
        assert call("delete", "gpt-j", "--all", "--yes").code == 0
        assert everything(aws)["objects"] == []

    def test_without_it_data_and_images_stay(self, aws: Aws) -> None:
        make_all(aws)
        make_belongings(aws)
        assert call("delete", "gpt-j").code == 0
        assert everything(aws)["repositories"] == [REPOSITORY]
        assert len(everything(aws)["objects"]) == 3

    def test_they_can_be_named_when_no_model_is_left(self, aws: Aws) -> None:
        make_belongings(aws)
        assert "--model-data and --repository" in call("delete", "gpt-j", "--all", "--yes").err
        arguments = ["--model-data", DATA, "--repository", REPOSITORY]
        assert call("delete", "gpt-j", "--all", "--yes", *arguments).code == 0
        assert not any(everything(aws).values())

    def test_what_another_endpoint_uses_stays(self, aws: Aws) -> None:
        make_endpoint(aws, "gpt-j")
        make_endpoint(aws, "second")
        make_belongings(aws)
        kept = call("delete", "gpt-j", "--all", "--yes", "--json").json["kept"]
        assert kept == [
            "s3://models/gpt-j-6b/: second-0a1b2c3d uses it too",
            "repository gptj-serve: second-0a1b2c3d uses it too",
        ]
        assert len(everything(aws)["objects"]) == 3
        assert everything(aws)["repositories"] == [REPOSITORY]

    def test_what_others_put_there_stays(self, aws: Aws) -> None:
        make_endpoint(aws)
        make_belongings(aws, ours=False)
        result = call("delete", "gpt-j", "--all", "--yes", "--json")
        assert len(result.json["kept"]) == 2
        assert everything(aws)["repositories"] == [REPOSITORY]
        assert len(everything(aws)["objects"]) == 2

    def test_nobody_is_there_to_confirm_it(self, aws: Aws) -> None:
        make_all(aws)
        make_belongings(aws)
        before = everything(aws)
        result = command("delete", "gpt-j", "--all")
        assert result.code == 1
        assert "--yes" in result.err
        assert everything(aws) == before

    @pytest.mark.parametrize(("typed", "goes"), [("gpt-j", True), ("y", False), ("", False)])
    def test_a_person_types_the_name(
        self, aws: Aws, monkeypatch: pytest.MonkeyPatch, typed: str, goes: bool
    ) -> None:
        make_endpoint(aws)
        make_belongings(aws)
        terminal = io.StringIO(f"{typed}\n")
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        result = call("delete", "gpt-j", "--all")
        assert "model data s3://models/gpt-j-6b/ (3 objects)" in result.err
        assert (result.code == 0) is goes
        assert any(everything(aws).values()) is not goes

    def test_objects_that_may_not_be_deleted_are_an_error(self, aws: Aws) -> None:
        refused = {"Errors": [{"Key": "a", "Code": "AccessDenied", "Message": "Access Denied"}]}
        with pytest.raises(removal.CommandError, match="s3:DeleteObject of a was refused: Access Denied"):
            removal.check_objects(refused)
        assert aws


class TestWaiting:
    def test_it_waits_until_the_endpoint_is_gone(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        make_endpoint(aws)
        looks: list[float] = []

        def gone_at_the_third_look(sagemaker: Any, name: str) -> dict[str, str] | None:
            looks.append(time.monotonic())
            assert name == "gpt-j"
            assert sagemaker
            return {"EndpointStatus": "Deleting"} if len(looks) < 3 else None

        endpoint = dataclasses.replace(ENDPOINT, describe=gone_at_the_third_look)
        monkeypatch.setattr(removal, "ENDPOINT", endpoint)
        assert call("delete", "gpt-j").code == 0
        assert len(looks) == 3
        assert everything(aws)["configs"] == []

    def test_a_moment_without_aws_is_put_up_with(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        make_endpoint(aws)
        fake = FakeTime()
        monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
        answers: list[dict[str, str] | Exception | None] = [
            {"EndpointStatus": "Deleting"},
            EndpointConnectionError(endpoint_url="https://x"),
            None,
        ]

        def away_at_the_second_look(*_: object) -> dict[str, str] | None:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        endpoint = dataclasses.replace(ENDPOINT, describe=away_at_the_second_look)
        monkeypatch.setattr(removal, "ENDPOINT", endpoint)
        result = call("delete", "gpt-j")
        assert result.code == 0
        assert "AWS does not answer; trying on" in result.err
        assert answers == []
        assert everything(aws)["configs"] == []

    @pytest.mark.parametrize("status", ["Creating", "Updating"])
    def test_an_endpoint_that_changes_is_deleted_later(self, aws: Aws, status: str) -> None:
        make_endpoint(aws, status=status)
        endpoint = endpoint_in_moto("gpt-j")
        timer = threading.Timer(0.3, lambda: setattr(endpoint, "endpoint_status", "InService"))
        timer.start()
        assert call("delete", "gpt-j").code == 0
        timer.join()
        assert not any(everything(aws).values())

    def test_a_component_that_changes_is_deleted_later(self, aws: Aws) -> None:
        make_endpoint(aws, component=True)
        component = moto_components.components()["gpt-j"]
        component["InferenceComponentStatus"] = "Updating"
        timer = threading.Timer(0.3, lambda: component.update(InferenceComponentStatus="InService"))
        timer.start()
        assert call("delete", "gpt-j").code == 0
        timer.join()
        assert not any(everything(aws).values())

    def test_it_does_not_wait_for_ever(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        make_endpoint(aws, status="Updating")
        monkeypatch.setattr(removal, "TIMEOUT_S", 0.1)
        result = call("delete", "gpt-j")
        assert result.code == 1
        assert "endpoint gpt-j: it changes" in result.err

    def test_ctrl_c_while_it_waits(self, aws: Aws) -> None:
        make_endpoint(aws, status="Updating")
        process = start("delete", "gpt-j")
        assert process.stderr is not None
        assert process.stderr.readline() == "deleting endpoint gpt-j\n"
        process.send_signal(signal.SIGINT)
        result = finish(process)
        assert result.code == 130
        assert "Run the same command again" in result.err
        endpoint_in_moto("gpt-j").endpoint_status = "InService"
        assert call("delete", "gpt-j").code == 0
        assert not any(everything(aws).values())


def test_interrupted_anywhere_and_run_again_nothing_stays(aws: Aws) -> None:
    make_all(aws)
    make_belongings(aws)
    assert cut_off_again_and_again(lambda: call("delete", "gpt-j", "--all", "--yes")) == 10
    assert not any(everything(aws).values())
