"""``scripts/deploy`` where others have had their hands on: endpoints, instances, updates, buckets."""

import pytest

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint import removal, waiting
from support.aws.deploy_account import BUCKET, FakeTime, deploy, failing, push_image, upload
from support.aws.made_endpoints import DATA, endpoint_in_moto, make_belongings, make_endpoint
from support.aws.run_commands import call


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    monkeypatch.setattr(removal, "POLL_S", 0.01)
    return fake


@pytest.fixture
def image(aws: Aws) -> str:
    upload(aws)
    return push_image(aws, "one")


@pytest.mark.parametrize("status", ["InService", "Failed"])
def test_an_endpoint_of_others_is_left_alone(aws: Aws, image: str, status: str) -> None:
    make_endpoint(aws, tagged=False, status=status)
    before = endpoint_in_moto("gpt-j").endpoint_config_name
    result = deploy(image)
    assert result.code == 1
    assert "gpt-j was not made by scripts/deploy" in result.err
    assert endpoint_in_moto("gpt-j").endpoint_config_name == before


@pytest.mark.parametrize(("num_now", "kind"), [(1, "ALL_AT_ONCE"), (4, "CANARY")])
def test_a_canary_is_a_part_of_what_scaling_has_made_of_it(
    aws: Aws, image: str, num_now: int, kind: str
) -> None:
    assert deploy(image, "--count", "4").code == 0
    endpoint_in_moto("gpt-j").production_variants[0]["DesiredInstanceCount"] = num_now
    two = push_image(aws, "two")
    plan = deploy(two, "--count", "4", "--dry-run", "--json").json["actions"]
    update = next(one["request"] for one in plan if one["operation"] == "update_endpoint")
    routing = update["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing["Type"] == kind
    asked = deploy(two, "--count", "4", "--dry-run", "--traffic", "canary")
    assert asked.code == (2 if num_now == 1 else 0)


def test_an_update_waits_for_scaling_that_came_first(aws: Aws, image: str) -> None:
    assert deploy(image).code == 0
    busy = "Cannot update in-progress endpoint"
    with failing("UpdateEndpoint", "ValidationException", busy, times=2):
        assert deploy(push_image(aws, "two"), "--json").json["change"] == "update"
    with failing("UpdateEndpoint", "ValidationException", busy, times=9):
        result = deploy(push_image(aws, "three"))
    assert result.code == 1
    assert busy in result.err


def test_policies_are_of_the_regions_partition() -> None:
    for region, partition in (
        ("cn-north-1", "aws-cn"),
        ("us-gov-west-1", "aws-us-gov"),
        ("me-south-1", "aws"),
    ):
        said = call("deploy", "--print-iam", "deploy", "--region", region, "--json").out
        assert f'"arn:{partition}:sagemaker:{region}:*:endpoint/gpt-j"' in said


def test_a_bucket_that_keeps_versions_is_told(aws: Aws) -> None:
    make_belongings(aws)
    make_endpoint(aws)
    enabled = {"Status": "Enabled"}
    aws.client("s3").put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration=enabled)
    result = call("delete", "gpt-j", "--all", "--yes")
    assert result.code == 0
    assert "the bucket keeps versions" in result.err
    assert f"model data {DATA}" in result.err


@pytest.mark.parametrize("command", ["status", "delete"])
def test_a_name_that_cannot_be_one_is_refused_before_aws_is_asked(command: str) -> None:
    result = call(command, "two words")
    assert result.code == 2
    assert "'two words': an endpoint's name has letters" in result.err


@pytest.mark.usefixtures("aws")
def test_a_page_instead_of_an_answer_is_not_shown() -> None:
    with failing("DescribeEndpoint", "500", "<!doctype html>\n<h1>Bad gateway</h1>"):
        result = call("status", "gpt-j")
    assert result.code == 1
    assert "DescribeEndpoint failed: HTTP status 500, with a page" in result.err
    assert "html" not in result.err


def test_asynchronous_requests_may_take_long(aws: Aws, image: str) -> None:
    result = deploy(image, "--async-output", f"s3://{BUCKET}/answers/")
    assert "scripts/invoke gpt-j --async" in result.out
    alarms = aws.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert [one["MetricName"] for one in alarms] == ["Invocation5XXErrors"]


def test_what_an_update_of_a_component_leaves_is_called_by_its_kind(aws: Aws, image: str) -> None:
    assert deploy(image, "--to-zero").code == 0
    (old,) = aws.client("sagemaker").list_models()["Models"]
    result = deploy(push_image(aws, "two"), "--to-zero")
    assert f"deleting model {old['ModelName']}" in result.err
