"""The policies say what the commands do, and no more: compared with the calls that they really make."""

from functools import cache

import pytest
from botocore import xform_name
from botocore.session import get_session
from deploying import FakeTime, deploy, failing, push_image, upload
from moto_sagemaker import script
from permissions import NAMED_OTHERWISE, granted, needed, recorded

from gptj_serve.aws import deploy as deploy_module
from gptj_serve.aws import iam, waiting
from gptj_serve.aws.clients import Aws
from gptj_serve.aws.grants import COMMANDS
from gptj_serve.aws.s3 import S3Url
from harness import ROOT

MODELS = {"sagemaker": ("sagemaker", "sagemaker-runtime")}
"""Services whose permissions have one beginning and whose clients do not."""


def test_deploy_needs_what_it_is_granted(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(deploy_module, "connect", lambda *_: aws)
    upload(aws)
    one, two = push_image(aws, "one"), push_image(aws, "two")
    group = "/aws/sagemaker/Endpoints/gpt-j"
    aws.client("logs").create_log_group(logGroupName=group)
    aws.client("logs").create_log_stream(logGroupName=group, logStreamName="main/i-1")
    with recorded() as calls:
        script.creations = ["it failed"]
        deploy(one)
        deploy(one)
        deploy(two)
        deploy(one, "--no-alarms", "--instance-type", "ml.g5.2xlarge")
    assert needed(calls) == granted("deploy")
    with recorded() as calls:
        script.updates = ["it failed"]
        deploy(two, "--create-role", role=None)
        deploy(two, "--create-role", role=None)
        deploy(two, "--create-role", role=None)
    assert needed(calls) - granted("deploy") == granted("deploy --create-role")


def test_every_action_is_one_of_a_service_that_exists() -> None:
    """Typing errors in a policy are accepted by nobody but IAM."""
    for name, grants in COMMANDS.items():
        for action in (action for grant in grants if grant.calls for action in grant.actions):
            service, operation = action.split(":")
            if service != "s3":
                known = {one for model in MODELS.get(service, (service,)) for one in operations(model)}
                assert operation in known, f"{name}: {action}"


@cache
def operations(service: str) -> list[str]:
    names: list[str] = get_session().get_service_model(service).operation_names
    return names


def test_nothing_is_granted_that_no_command_calls() -> None:
    """Each granted call is in the sources: as botocore names it, or as s3's permission for it does."""
    sources = "\n".join(path.read_text() for path in (ROOT / "code/gptj_serve/aws").glob("*.py"))
    calls = {permission: [] for permission in NAMED_OTHERWISE.values()}
    for (_, operation), permission in NAMED_OTHERWISE.items():
        calls[permission].append(operation)
    for name in COMMANDS:
        for permission in granted(name):
            operation = permission.split(":")[1]
            methods = [xform_name(one) for one in (operation, *calls.get(permission, []))]
            assert any(method in sources for method in methods), f"{name}: {permission}"


def test_resources_are_limited_to_what_the_options_name() -> None:
    scope = iam.Scope(
        partition="aws",
        region="eu-west-1",
        account="123456789012",
        name="gpt-j",
        repository="gptj-serve",
        bucket="models",
        prefix="gpt-j-6b/",
        role_arn="arn:aws:iam::123456789012:role/mine",
    )
    policy = iam.policy(COMMANDS["deploy"], scope)
    by_action = {action: one for one in policy["Statement"] for action in one["Action"]}
    assert by_action["s3:GetObject"]["Resource"] == ["arn:aws:s3:::models/gpt-j-6b/*"]
    assert by_action["iam:PassRole"]["Resource"] == ["arn:aws:iam::123456789012:role/mine"]
    assert by_action["iam:PassRole"]["Condition"] == {
        "StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}
    }
    start = "arn:aws:sagemaker:eu-west-1:123456789012"
    assert by_action["sagemaker:DeleteModel"]["Resource"] == [f"{start}:model/gpt-j-*"]
    unlimited = {action for action, one in by_action.items() if one["Resource"] == ["*"]}
    # these know no resources
    assert unlimited == {
        "sagemaker:ListModels",
        "sagemaker:ListEndpointConfigs",
        "cloudwatch:DescribeAlarms",
        "application-autoscaling:DescribeScalableTargets",
    }


def test_the_execution_role() -> None:
    scope = iam.Scope(bucket="models", output=S3Url("answers", "one/"), in_vpc=True)
    allowed = {action for one in iam.execution_policy(scope)["Statement"] for action in one["Action"]}
    assert {"ecr:BatchGetImage", "s3:GetObject", "s3:PutObject", "logs:PutLogEvents"} <= allowed
    assert "ec2:CreateNetworkInterface" in allowed
    plain = {action for one in iam.execution_policy(iam.Scope())["Statement"] for action in one["Action"]}
    assert not [action for action in plain if action.startswith(("s3:Put", "ec2:", "iam:"))]


def test_a_refused_call_names_the_permission(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy_module, "connect", lambda *_: aws)
    upload(aws)
    image = push_image(aws, "one")
    who = "User: arn:aws:iam::123456789012:user/me is not authorized to perform: sagemaker:CreateModel"
    with failing("CreateModel", "AccessDeniedException", f"{who} on resource: arn:aws:sagemaker:x"):
        result = deploy(image)
    assert result.code == 1
    assert "permission is missing: sagemaker:CreateModel on arn:aws:sagemaker:x" in result.err
    assert "--print-iam" in result.err
