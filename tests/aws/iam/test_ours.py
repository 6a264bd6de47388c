"""Nothing that somebody else made is changed, whichever command is asked to; and what watches over that sees.

`permissions.watched` asks of every command of every test whose things it changes; here are things of others.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import moto.s3.models as moto_s3
import pytest
from botocore.exceptions import ClientError

from gptj_serve import demo
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import autoscaling, removal, waiting
from gptj_serve.aws.iam.grants import COMMANDS
from gptj_serve.aws.iam.policies import Scope, execution_policy
from gptj_serve.aws.iam.roles import ROLE_NAME
from gptj_serve.aws.model.transfer import SHA256
from support.aws import moto_components, sagemaker_runtime
from support.aws.deploy_account import FakeTime, deploy, make_role, push_image, upload
from support.aws.docker_engine import Engine
from support.aws.made_endpoints import REPOSITORY, endpoint_in_moto, make_belongings, make_endpoint, scaling
from support.aws.moto_sagemaker import script
from support.aws.permission_checks import CHANGES, Request, allows, granted, needed, recorded, watched
from support.aws.run_commands import call


@pytest.fixture(autouse=True)
def _time_passes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(removal, "POLL_S", 0.01)


def scale_as_others(aws: Aws, resource: str = "endpoint/gpt-j/variant/main") -> None:
    """Limits 2 to 9 and a policy of somebody's own."""
    client = aws.client(autoscaling.SERVICE)
    unit = "variant:DesiredInstanceCount" if resource[0] == "e" else "inference-component:DesiredCopyCount"
    key = {"ServiceNamespace": "sagemaker", "ResourceId": resource, "ScalableDimension": f"sagemaker:{unit}"}
    client.register_scalable_target(**key, MinCapacity=2, MaxCapacity=9)
    client.put_scaling_policy(**key, PolicyName="theirs", **autoscaling.WAKE)


@pytest.mark.parametrize("arguments", [["--max", "2"], ["--off"], ["--max", "2", "--dry-run"]], ids=str)
def test_an_endpoint_of_others_scales_as_it_did(aws: Aws, arguments: list[str]) -> None:
    make_endpoint(aws, tagged=False)
    scale_as_others(aws)
    before = scaling(aws)
    result = call("scale", "gpt-j", *arguments)
    assert result.code == 1
    assert "gpt-j was not made by scripts/deploy (it has no tag gptj-serve:endpoint)" in result.err
    assert scaling(aws) == before
    assert before[0] == [("endpoint/gpt-j/variant/main", 2, 9)]


def foreign_component(aws: Aws, endpoint: str = "gpt-j") -> dict[str, Any]:
    """The component on an endpoint of ours, as if somebody else had made it."""
    make_endpoint(aws, endpoint, component=True)
    component = moto_components.components()[endpoint]
    component["Tags"] = []
    return component


@pytest.mark.parametrize("command", ["scale", "delete"])
def test_a_component_of_others_on_an_endpoint_of_ours(aws: Aws, command: str) -> None:
    before = dict(foreign_component(aws))
    result = call(command, "gpt-j", *(["--max", "2"] if command == "scale" else []))
    assert result.code == 1
    assert "the inference component gpt-j was not made by scripts/deploy" in result.err
    assert moto_components.components()["gpt-j"] == before
    assert scaling(aws) == ([], [], [])
    assert endpoint_in_moto("gpt-j")


def test_a_component_of_another_endpoint_that_is_called_alike(aws: Aws) -> None:
    upload(aws)
    make_endpoint(aws, "other", component=True)
    components = moto_components.components()
    components["gpt-j"] = {**components.pop("other"), "InferenceComponentName": "gpt-j"}
    scale_as_others(aws, "inference-component/gpt-j")
    before = dict(components["gpt-j"]), scaling(aws)
    result = deploy(push_image(aws, "one"), "--to-zero")
    assert result.code == 1
    assert "gpt-j belongs to the endpoint other" in result.err
    call("delete", "gpt-j")
    assert (components["gpt-j"], scaling(aws)) == before


def test_a_role_of_others(aws: Aws) -> None:
    upload(aws)
    make_role(aws, ROLE_NAME)
    image = push_image(aws, "one")
    result = deploy(image, "--create-role", role=None)
    assert result.code == 1
    assert "has no tag gptj-serve:role" in result.err
    assert f"--role {ROLE_NAME}" in result.err
    iam = aws.client("iam")
    assert iam.list_role_policies(RoleName=ROLE_NAME)["PolicyNames"] == []
    name = "gptj-serve-eu-west-1-gpt-j"
    iam.put_role_policy(
        RoleName=ROLE_NAME, PolicyName=name, PolicyDocument=json.dumps(execution_policy(Scope()))
    )
    deleted = call("delete", "gpt-j")
    assert f"its policy {name} stays: `aws iam delete-role-policy" in deleted.err
    assert iam.list_role_policies(RoleName=ROLE_NAME)["PolicyNames"] == [name]
    iam.tag_role(RoleName=ROLE_NAME, Tags=[{"Key": "gptj-serve:role", "Value": ROLE_NAME}])
    assert deploy(image, "--create-role", role=None).code == 0


def test_an_alarm_of_others_is_neither_deleted_nor_overwritten(aws: Aws) -> None:
    make_endpoint(aws, component=True)
    cloudwatch = aws.client("cloudwatch")
    how = {"MetricName": "a", "Namespace": "b", "ComparisonOperator": "GreaterThanThreshold"}
    how |= {"Statistic": "Sum", "Period": 60, "EvaluationPeriods": 1, "Threshold": 1.0}
    cloudwatch.put_metric_alarm(AlarmName="gptj-serve/gpt-j/from-zero", **how)
    before = cloudwatch.describe_alarms()["MetricAlarms"]
    result = call("scale", "gpt-j", "--max", "2", "--to-zero")
    assert result.code == 1
    assert "the alarm gptj-serve/gpt-j/from-zero was not made by these commands" in result.err
    assert call("delete", "gpt-j").code == 0
    assert cloudwatch.describe_alarms()["MetricAlarms"] == before


def test_what_watches_over_the_tests_sees_all_of_it(aws: Aws) -> None:
    """It would tell of a call that is not allowed there, and of one that changes what others made."""
    make_endpoint(aws, tagged=False)
    make_belongings(aws, ours=False)
    scale_as_others(aws)
    wrong: list[tuple[str, str, dict[str, Any], str]] = [
        ("sagemaker", "delete_endpoint", {"EndpointName": "gpt-j"}, "it has no tag gptj-serve:endpoint"),
        ("sagemaker", "delete_endpoint", {"EndpointName": "gpt-k"}, "allows no sagemaker:DeleteEndpoint"),
        ("ecr", "delete_repository", {"repositoryName": REPOSITORY}, "it has no tag gptj-serve:repository"),
        ("s3", "delete_object", {"Bucket": "models", "Key": "gpt-j-6b/config.json"}, "not in the list"),
        ("iam", "delete_role", {"RoleName": ROLE_NAME}, "allows no iam:DeleteRole on"),
    ]
    for service, operation, members, said in wrong:
        with pytest.raises(AssertionError, match=said):
            _delete_watched(getattr(aws.client(service), operation), members)
    assert Request("s3", "HeadObject", {}, "eu-west-1").permission == "s3:GetObject"
    statement = {"Action": ["a:B"], "Resource": ["arn:x/*"], "Condition": {"StringEquals": {"k": "v"}}}
    document = {"Statement": [statement]}
    assert allows([document], "a:B", "arn:x/1", {"k": "v"})
    assert not allows([document], "a:B", "arn:x/1", {"k": "w"})
    assert not allows([document], "a:B", "arn:y/1", {"k": "v"})
    assert not allows([document], "a:B", "*", {"k": "v"})


def test_all_that_the_policies_allow_to_change_is_seen_changing(
    aws: Aws, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command, planned and done: none has a permission to change that no watched call of it uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with recorded() as calls:
        _push_and_upload(aws, engine)
        image, other = push_image(aws, "one"), push_image(aws, "two")
        _twice("deploy", *_of(image), "--create-role")
        _twice("deploy", *_of(other), "--create-role")
        _twice("scale", "gpt-j", "--max", "2")
        call("scale", "gpt-j", "--off")
        _twice("deploy", "idle", *_of(image), "--create-role", "--to-zero")
        _twice("deploy", "idle", *_of(other), "--create-role", "--to-zero")
        script.creations = ["no"]
        call("deploy", "broken", *_of(other), "--create-role")
        moto_components.failures.append("no")
        call("deploy", "broken", *_of(other), "--create-role", "--to-zero")
        _twice("scale", "idle", "--max", "2", "--to-zero")
        _twice("deploy", "later", *_of(image), "--create-role", "--async-output", "s3://models/answers/")
        with sagemaker_runtime.running(_answer_later(aws)) as there:
            monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", there.url)
            assert call("invoke", "later", "In", "--async").code == 0
        for name in ("gpt-j", "idle", "later"):
            assert call("status", name).code == 0
            assert call("delete", name, "--all", "--dry-run").code == 0
            assert call("delete", name, "--all", "--yes").code == 0
    allowed = {action for name in COMMANDS for action in granted(name)}
    changes = {one for one in allowed if one.partition(":")[2].startswith(CHANGES)}
    # S3 has its own names for two of them
    assert changes - needed(calls) == set()
    assert len(changes) > 25


def _of(image: str) -> tuple[str, ...]:
    return "--image", image, "--model-data", "s3://models/gpt-j-6b/"


def _twice(*arguments: str) -> None:
    """A command's plan, and then the command."""
    for dry_run in (["--dry-run"], []):
        result = call(*arguments, *dry_run)
        assert result.code == 0, result.err


def _push_and_upload(aws: Aws, engine: Engine) -> None:
    upload(aws)
    engine.add_image()
    _twice("push")
    _twice("push", "--tag", "team=search")
    model = str(demo.MODEL_DIR)
    _twice("upload_model", model)
    _twice("upload_model", model, "--to", "s3://models/demo/")
    s3 = aws.client("s3")
    s3.create_multipart_upload(Bucket="models", Key="demo/model.safetensors")
    s3.put_object(Bucket="models", Key="demo/old.safetensors", Metadata={SHA256: "00"})
    key = "1234abcd-12ab-34cd-56ef-1234567890ab"
    _twice("upload_model", model, "--to", "s3://models/demo/", "--kms-key", key)


def _answer_later(aws: Aws) -> sagemaker_runtime.Answers:
    def answer(asked: sagemaker_runtime.Asked) -> sagemaker_runtime.Answer:
        assert asked.endpoint == "later"
        body = b'[{"generated_text": "late"}]'
        sagemaker_s3 = moto_s3.s3_backends["123456789012"]["aws"]
        sagemaker_s3.put_object("models", "answers/one.out", body)
        headers = {"X-Amzn-SageMaker-OutputLocation": "s3://models/answers/one.out"}
        return sagemaker_runtime.Answer(202, (b'{"InferenceId": "1"}',), headers)

    assert aws.region
    return answer


def _delete_watched(operation: Any, members: dict[str, Any]) -> None:
    """Call AWS as if ``scripts/delete gpt-j`` did; whether AWS takes it is no matter."""
    with watched("delete", ["gpt-j"]), contextlib.suppress(ClientError):
        operation(**members)
