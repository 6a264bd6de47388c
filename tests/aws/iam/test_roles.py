"""The execution role's policies: made with an endpoint, gone with it."""

import json
from typing import Any

import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import removal, waiting
from gptj_serve.aws.iam.roles import ROLE_NAME, policy_name
from support.aws.deploy_account import FakeTime, deploy, failing, push_image, upload
from support.aws.moto_sagemaker import script
from support.aws.run_commands import call


@pytest.fixture(autouse=True)
def _fake_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(removal, "POLL_S", 0.01)


@pytest.fixture
def image(aws: Aws) -> str:
    upload(aws)
    return push_image(aws, "one")


def policies(aws: Aws) -> dict[str, Any]:
    """What the role's policies say, by name."""
    iam = aws.client("iam")
    names = iam.list_role_policies(RoleName=ROLE_NAME)["PolicyNames"]
    return {
        name: iam.get_role_policy(RoleName=ROLE_NAME, PolicyName=name)["PolicyDocument"] for name in names
    }


def make(image: str, *arguments: str, data: str = "s3://models/gpt-j-6b/") -> int:
    return deploy(image, "--create-role", *arguments, data=data, role=None).code


def test_an_endpoint_takes_its_policy_with_it(aws: Aws, image: str) -> None:
    assert make(image) == 0
    assert make(image, "another") == 0
    plan = call("delete", "gpt-j", "--dry-run", "--json").json["steps"]
    assert "delete_role_policy" in [one["operation"] for one in plan]
    assert call("delete", "gpt-j").code == 0
    assert list(policies(aws)) == [policy_name("another", aws.region)]
    assert "Nothing of gpt-j" in call("delete", "gpt-j").out


def test_one_that_never_came_up_leaves_none(aws: Aws, image: str) -> None:
    script.creations = ["no"]
    assert make(image) == 1
    assert policies(aws) == {}
    with failing("CreateModel", "ValidationException", "no such thing"):
        assert make(image) == 1
    assert policies(aws) == {}


def test_an_update_that_fails_leaves_what_the_version_before_it_needs(aws: Aws, image: str) -> None:
    assert make(image) == 0
    before = policies(aws)
    upload(aws, prefix="better/")
    script.updates = ["no"]
    assert make(image, data="s3://models/better/") == 1
    assert policies(aws) == before
    assert make(image, data="s3://models/better/") == 0
    assert "/better/*" in json.dumps(policies(aws))


def test_a_policy_that_a_killed_run_left_is_found(aws: Aws, image: str) -> None:
    with failing("CreateModel", "ValidationException", "no"):
        assert make(image, "--keep") == 1
    assert policies(aws)
    assert call("delete", "gpt-j").code == 0
    assert policies(aws) == {}


def test_who_may_not_look_can_delete_the_rest(aws: Aws, image: str) -> None:
    assert make(image) == 0
    with failing("GetRolePolicy", "AccessDenied", "no"):
        result = call("delete", "gpt-j")
    assert result.code == 0
    assert "iam:GetRolePolicy" in result.err
    assert aws.client("sagemaker").list_models()["Models"] == []


def test_regions_have_policies_of_their_own() -> None:
    assert policy_name("gpt-j", "eu-west-1") != policy_name("gpt-j", "us-east-1")
    assert len(policy_name("x" * 54, "ap-southeast-7")) <= 128
