"""The requests that make an endpoint, checked by botocore against SageMaker's own model."""

import dataclasses
from typing import Any

import pytest

from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.plan import Action, validate
from gptj_serve.aws.endpoint.alarms import alarm_actions, missing_alarms, of_component, of_variant
from gptj_serve.aws.endpoint.deploying.requests import (
    EndpointSpec,
    EndpointUpdate,
    check_name,
    config_action,
    download_timeout_s,
    endpoint_action,
    model_action,
    startup_timeout_s,
    update_action,
)
from gptj_serve.aws.machines.fit import GPT_J_6B
from gptj_serve.aws.machines.instances import all_gpu_instances, find_instance
from gptj_serve.aws.model.in_s3 import ModelData

PREFIX = ModelData("s3://models/gpt-j-6b/", 12_100_000_000, "0123456789abcdef", GPT_J_6B)
ARCHIVE = ModelData("s3://models/model.tar.gz", 10_000_000_000, None, None)
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/gptj-serve@sha256:" + "ab" * 32


def wanted(instance_type: str = "ml.g4dn.2xlarge", **changes: Any) -> EndpointSpec:
    instance = find_instance(instance_type)
    assert instance is not None
    plain = EndpointSpec(
        name="gpt-j",
        image=IMAGE,
        data=PREFIX,
        instance=instance,
        num_instances=1,
        role_arn="arn:aws:iam::123456789012:role/test",
        environment={"GPTJ_FRONT": "http"},
        has_metrics=True,
        tags={"team": "search"},
    )
    return dataclasses.replace(plain, **changes)


def actions(of: EndpointSpec) -> tuple[Action, Action, Action]:
    model = model_action(of)
    config = config_action(of, model.request["ModelName"])
    return model, config, endpoint_action(of, config.request["EndpointConfigName"])


def variant(of: EndpointSpec) -> Any:
    return actions(of)[1].request["ProductionVariants"][0]


EVERY = [
    *(wanted(one.name) for one in all_gpu_instances()),
    wanted("ml.m5.xlarge"),
    wanted("ml.p3.2xlarge", volume_gb=100),
    wanted(data=ARCHIVE),
    wanted(async_output="s3://answers/", async_concurrency=4),
    wanted(async_output="s3://answers/"),
    wanted(subnets=("subnet-1",), security_groups=("sg-1",), is_isolated=True),
]


@pytest.mark.parametrize("of", EVERY, ids=str)
def test_botocore_accepts_every_request(of: EndpointSpec) -> None:
    for action in actions(of):
        validate(action)


def test_names_come_from_the_whole_request() -> None:
    same, again = actions(wanted()), actions(wanted())
    assert same == again
    changes: list[dict[str, Any]] = [
        {"image": IMAGE.replace("ab", "cd")},
        {"data": dataclasses.replace(PREFIX, fingerprint="other")},
        {"environment": {}},
        {"tags": {}},
        {"role_arn": "arn:aws:iam::123456789012:role/other"},
    ]
    names = {actions(wanted(**change))[0].request["ModelName"] for change in changes}
    assert len(names | {same[0].request["ModelName"]}) == 6
    other = actions(wanted(num_instances=2))
    assert other[0] == same[0]
    assert other[1].request["EndpointConfigName"] != same[1].request["EndpointConfigName"]


def test_everything_is_tagged() -> None:
    for action in (*actions(wanted()), *alarms()):
        if action.service == "sagemaker":
            assert {"Key": "gptj-serve:endpoint", "Value": "gpt-j"} in action.request["Tags"]
            assert {"Key": "team", "Value": "search"} in action.request["Tags"]


def test_model_data() -> None:
    source = actions(wanted())[0].request["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]
    assert source == {"S3Uri": PREFIX.uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
    source = actions(wanted(data=ARCHIVE))[0].request["PrimaryContainer"]["ModelDataSource"]["S3DataSource"]
    assert source == {"S3Uri": ARCHIVE.uri, "S3DataType": "S3Object", "CompressionType": "Gzip"}


def test_timeouts_follow_size_and_kind() -> None:
    assert download_timeout_s(PREFIX) == 600
    assert startup_timeout_s(PREFIX) == 660
    assert download_timeout_s(ARCHIVE) == 1140
    assert download_timeout_s(dataclasses.replace(ARCHIVE, num_bytes=10**12)) == 3600
    small = variant(wanted(startup_timeout_s=120, download_timeout_s=90))
    assert small["ContainerStartupHealthCheckTimeoutInSeconds"] == 120
    assert small["ModelDataDownloadTimeoutInSeconds"] == 90


def test_volumes_go_to_those_who_take_them() -> None:
    assert "VolumeSizeInGB" not in variant(wanted())
    assert variant(wanted("ml.p3.2xlarge"))["VolumeSizeInGB"] == 43
    assert variant(wanted("ml.p3.2xlarge", data=ARCHIVE))["VolumeSizeInGB"] == 60
    assert variant(wanted("ml.p3.2xlarge", volume_gb=99))["VolumeSizeInGB"] == 99


def test_host_images_routing_and_metrics() -> None:
    assert variant(wanted())["InferenceAmiVersion"] == "al2023-ami-sagemaker-inference-gpu-4-1"
    assert variant(wanted("ml.p3.2xlarge"))["InferenceAmiVersion"] == "al2-ami-sagemaker-inference-gpu-3-1"
    assert "InferenceAmiVersion" not in variant(wanted("ml.m5.xlarge"))
    assert variant(wanted())["RoutingConfig"] == {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"}
    metrics = actions(wanted())[1].request["MetricsConfig"]
    assert metrics["EnableEnhancedMetrics"]
    assert metrics["EnableDetailedObservability"]
    assert not actions(wanted(has_metrics=False))[1].request["MetricsConfig"]["EnableDetailedObservability"]


@pytest.mark.parametrize(
    ("traffic", "count", "kind", "size"),
    [
        ("auto", 1, "ALL_AT_ONCE", None),
        ("auto", 4, "CANARY", 1),
        ("auto", 40, "CANARY", 4),
        ("all-at-once", 4, "ALL_AT_ONCE", None),
        ("canary", 2, "CANARY", 1),
    ],
)
def test_updates_move_the_traffic(traffic: str, count: int, kind: str, size: int | None) -> None:
    action = update_action("gpt-j", "gpt-j-0", EndpointUpdate(traffic, 300, ("one", "two"), count))
    validate(action)
    policy = action.request["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert (policy["Type"], policy.get("CanarySize", {}).get("Value")) == (kind, size)
    assert policy["WaitIntervalInSeconds"] == 300
    alarms = action.request["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
    assert alarms == [{"AlarmName": "one"}, {"AlarmName": "two"}]
    without = update_action("gpt-j", "gpt-j-0", EndpointUpdate(traffic, 300, (), count))
    assert "AutoRollbackConfiguration" not in without.request["DeploymentConfig"]


def test_alarms() -> None:
    made = alarms()
    for action in made:
        validate(action)
    metrics = [one.request["MetricName"] for one in made]
    assert metrics == ["Invocation5XXErrors", "MidStreamErrors", "ModelLatency", "FirstChunkModelLatency"]
    assert [one.request["Threshold"] for one in made] == [5, 5, 55e6, 55e6]  # latencies in microseconds
    without = [one.request["MetricName"] for one in alarms(has_streams=False)]
    assert without == ["Invocation5XXErrors", "ModelLatency"]
    assert [one.request["MetricName"] for one in alarms(0)] == ["Invocation5XXErrors", "MidStreamErrors"]
    there = [dict(one.request) for one in made]
    assert missing_alarms(made, there) == []
    assert missing_alarms(made, there[:3]) == [made[3]]
    assert missing_alarms(alarms(40), there)[0].request["Threshold"] == 40e6
    # of a component they are other metrics, though they are called the same
    assert missing_alarms(alarms(dimensions=of_component("gpt-j")), there) != []


def alarms(
    latency_s: float = 55,
    *,
    dimensions: dict[str, str] | None = None,
    has_streams: bool = True,
) -> tuple[Action, ...]:
    return alarm_actions("gpt-j", dimensions or of_variant("gpt-j"), [], latency_s, has_streams=has_streams)


def test_who_has_streams() -> None:
    assert wanted(has_metrics=True).has_streams
    assert not wanted(has_metrics=False).has_streams
    assert not wanted(has_metrics=True, async_output="s3://answers/one/").has_streams


def test_the_host_image_can_be_another() -> None:
    other = "al2-ami-sagemaker-inference-gpu-3-1"
    assert variant(wanted(inference_ami=other))["InferenceAmiVersion"] == other
    assert variant(wanted())["InferenceAmiVersion"] != other


def test_failures_of_asynchronous_requests_have_a_place() -> None:
    for output in ("s3://answers/one/", "s3://answers/one"):
        made = config_action(wanted(async_output=output), "m").request["AsyncInferenceConfig"]
        assert made["OutputConfig"]["S3FailurePath"] == "s3://answers/one/failures/"


@pytest.mark.parametrize("name", ["gpt-j", "a", "1a-b2", "x" * 54])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "a--b", "a_b", "A", "ä", "x" * 55, "a/b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UsageError, match="lower-case letters, digits and single hyphens"):
        check_name(name)
