"""The policies say what the commands do, and no more: compared with the calls that they really make."""

from functools import cache
from typing import Any

import pytest
from botocore import xform_name
from botocore.session import get_session

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.endpoint import waiting
from gptj_serve.aws.endpoint.deploying import deployment as deploy_module
from gptj_serve.aws.iam import policies
from gptj_serve.aws.iam.grants import COMMANDS
from gptj_serve.aws.iam.roles import ROLE_NAME
from support.aws.deploy_account import FakeTime, deploy, failing, push_image, upload
from support.aws.moto_sagemaker import script
from support.aws.permission_checks import NAMED_OTHERWISE, allows, granted, needed, recorded
from support.aws.run_commands import call
from support.server import ROOT

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
    more = granted("deploy --create-role")
    assert needed(calls) - granted("deploy") == more - granted("deploy")
    assert more <= needed(calls)


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
    sources = "\n".join(path.read_text() for path in (ROOT / "code/gptj_serve/aws").rglob("*.py"))
    calls = {permission: [] for permission in NAMED_OTHERWISE.values()}
    for (_, operation), permission in NAMED_OTHERWISE.items():
        calls[permission].append(operation)
    for name in COMMANDS:
        for permission in granted(name):
            operation = permission.split(":")[1]
            methods = [xform_name(one) for one in (operation, *calls.get(permission, []))]
            assert any(method in sources for method in methods), f"{name}: {permission}"


def test_resources_are_limited_to_what_the_options_name() -> None:
    scope = policies.Scope(
        partition="aws",
        region="eu-west-1",
        account="123456789012",
        name="gpt-j",
        repository="gptj-serve",
        bucket="models",
        prefix="gpt-j-6b/",
        role="arn:aws:iam::123456789012:role/mine",
    )
    policy = policies.policy(COMMANDS["deploy"], scope)
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
    scope = policies.Scope(bucket="models", output=S3Url("answers", "one/"), in_vpc=True)
    allowed = {action for one in policies.execution_policy(scope)["Statement"] for action in one["Action"]}
    assert {"ecr:BatchGetImage", "s3:GetObject", "s3:PutObject", "logs:PutLogEvents"} <= allowed
    assert "ec2:CreateNetworkInterface" in allowed
    plain = {
        action for one in policies.execution_policy(policies.Scope())["Statement"] for action in one["Action"]
    }
    assert not [action for action in plain if action.startswith(("s3:Put", "ec2:", "iam:"))]
    assert "cloudwatch:DescribeAlarms" in plain


ELSEWHERE = "999988887777.dkr.ecr.eu-west-1.amazonaws.com/gptj-serve@sha256:" + "0" * 64


def print_iam(*arguments: str) -> dict[str, Any]:
    """What ``--print-iam`` prints: actions, with their resources."""
    document = call("deploy", "--region", "eu-west-1", *arguments, "--json").json
    (policy,) = document.values()
    statements = policy.get("permissions", policy)["Statement"]
    found: dict[str, list[str]] = {}
    for one in statements:
        for action in one["Action"]:
            found.setdefault(action, []).extend(one["Resource"])
    return found


def test_an_image_in_another_account() -> None:
    for what in ("execution-role", "deploy"):
        found = print_iam("--image", ELSEWHERE, "--print-iam", what)
        action = "ecr:BatchGetImage" if what == "execution-role" else "ecr:DescribeImages"
        assert found[action] == ["arn:aws:ecr:eu-west-1:999988887777:repository/gptj-serve"]


@pytest.mark.parametrize(
    ("key", "resource"),
    [
        (
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-west-1:*:key/1234abcd-12ab-34cd-56ef-1234567890ab",
        ),
        ("arn:aws:kms:eu-west-1:1:key/x", None),
        ("arn:aws:kms:eu-west-1:123456789012:key/12ab", "arn:aws:kms:eu-west-1:123456789012:key/12ab"),
        ("alias/models", "arn:aws:kms:eu-west-1:*:key/*"),
        ("arn:aws:kms:eu-west-1:123456789012:alias/models", "arn:aws:kms:eu-west-1:123456789012:key/*"),
        ("my key", None),
    ],
)
def test_a_key_of_kms(key: str, resource: str | None) -> None:
    if resource is None:
        said = call("deploy", "--print-iam", "execution-role", "--kms-key", key)
        assert said.code == 2
        assert f"--kms-key {key}: no key of KMS" in said.err
        return
    for what in ("execution-role", "deploy", "upload-model", "delete --all"):
        found = print_iam("--kms-key", key, "--print-iam", what)
        assert found["kms:Decrypt"] == [resource]
        assert ("kms:GenerateDataKey" in found) == (what == "upload-model")
        assert not [action for action in print_iam("--print-iam", what) if action.startswith("kms:")]
    text = call("deploy", "--kms-key", key, "--print-iam", "execution-role").out
    assert ('"kms:ResourceAliases": "alias/models"' in text) == ("alias/" in key)


def test_a_role_by_its_name() -> None:
    found = print_iam("--role", "mine", "--print-iam", "deploy")
    assert found["iam:PassRole"] == ["arn:aws:iam::*:role/mine", "arn:aws:iam::*:role/*/mine"]


def test_asynchronous_requests_that_lie_elsewhere() -> None:
    places = (
        "--async-output",
        "s3://answers/one/",
        "--async-input",
        "s3://asked/a",
        "--async-input",
        "s3://more",
    )
    found = print_iam(*places, "--print-iam", "execution-role")
    assert {"arn:aws:s3:::answers/one/*", "arn:aws:s3:::asked/a/*", "arn:aws:s3:::more/*"} <= {
        *found["s3:GetObject"]
    }
    assert found["s3:PutObject"] == ["arn:aws:s3:::answers/one/*"]
    refused = call("deploy", "--print-iam", "execution-role", "--async-input", "asked")
    assert "--async-input asked: not an S3 address" in refused.err


def test_the_role_of_encrypted_model_data_may_decrypt_it(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without being told: S3 says which key it is."""
    monkeypatch.setattr(deploy_module, "connect", lambda *_: aws)
    upload(aws)
    key = "arn:aws:kms:eu-west-1:123456789012:key/12ab"
    how = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}
    body = aws.client("s3").get_object(Bucket="models", Key="gpt-j-6b/config.json")["Body"].read()
    aws.client("s3").put_object(Bucket="models", Key="gpt-j-6b/config.json", Body=body, **how)
    image = push_image(aws, "one")
    assert deploy(image, "--create-role", "--kms-key", key, role=None).code == 0
    name = {"RoleName": ROLE_NAME, "PolicyName": "gptj-serve-eu-west-1-gpt-j"}
    policy = aws.client("iam").get_role_policy(**name)["PolicyDocument"]
    assert allows([policy], "kms:Decrypt", key)
    made = deploy_module.look(aws, "s3://models/gpt-j-6b/", Console())
    assert made.kms_key == key


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
