"""Nothing that somebody else made is changed, whichever command is asked to; and what watches over that sees.

`permissions.watched` asks of every command of every test whose things it changes; here are things of others.
"""

import contextlib
from typing import Any

import moto_components
import pytest
from botocore.exceptions import ClientError
from commands import call
from deploying import FakeTime, deploy, make_role, push_image, upload
from made import REPOSITORY, endpoint_in_moto, make_belongings, make_endpoint
from permissions import Request, allows, watched
from test_scale import scaling

from gptj_serve.aws import autoscaling, removal, waiting
from gptj_serve.aws.clients import Aws
from gptj_serve.aws.roles import ROLE_NAME


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


def _delete_watched(operation: Any, members: dict[str, Any]) -> None:
    """Call AWS as if ``scripts/delete gpt-j`` did; whether AWS takes it is no matter."""
    with watched("delete", ["gpt-j"]), contextlib.suppress(ClientError):
        operation(**members)
