"""Requests for an endpoint without a model and the component on it: botocore takes them."""

import dataclasses
from typing import Any

import pytest

from gptj_serve.aws.common.plan import validate
from gptj_serve.aws.endpoint.autoscaling import most_copies, obstacle
from gptj_serve.aws.endpoint.deploying.requests import (
    EndpointSpec,
    component_action,
    component_specification,
    config_action,
    model_action,
)
from gptj_serve.aws.machines.fit import GPT_J_6B
from gptj_serve.aws.machines.instances import find_instance
from gptj_serve.aws.model.in_s3 import ModelData


def wanted(**changes: Any) -> EndpointSpec:
    instance = find_instance("ml.g5.2xlarge")
    assert instance is not None
    pool = EndpointSpec(
        name="gpt-j",
        image="123456789012.dkr.ecr.us-east-1.amazonaws.com/gptj-serve@sha256:" + "ab" * 32,
        data=ModelData("s3://models/gpt-j-6b/", 12_100_000_000, "0123456789abcdef", GPT_J_6B),
        instance=instance,
        num_instances=1,
        role_arn="arn:aws:iam::123456789012:role/x",
        environment={},
        has_metrics=True,
        tags={"a": "b"},
        download_timeout_s=600,
        startup_timeout_s=700,
        subnets=("subnet-1",),
        security_groups=("sg-1",),
        is_isolated=True,
        max_instances=3,
    )
    return dataclasses.replace(pool, **changes)


def test_the_pool_has_all_but_the_model() -> None:
    action = config_action(wanted(), "gpt-j-1")
    validate(action)
    (variant,) = action.request["ProductionVariants"]
    assert variant == {
        "VariantName": "main",
        "InstanceType": "ml.g5.2xlarge",
        "InitialInstanceCount": 1,
        "InitialVariantWeight": 1.0,
        "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        "ManagedInstanceScaling": {"Status": "ENABLED", "MinInstanceCount": 0, "MaxInstanceCount": 3},
    }
    model = model_action(wanted()).request
    assert action.request["ExecutionRoleArn"] == model["ExecutionRoleArn"] == wanted().role_arn
    assert action.request["EnableNetworkIsolation"] is model["EnableNetworkIsolation"] is True
    network = {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
    assert action.request["VpcConfig"] == model["VpcConfig"] == network
    with_model = config_action(wanted(max_instances=None), "gpt-j-1").request
    assert with_model["ProductionVariants"][0]["ModelName"] == "gpt-j-1"
    assert obstacle(variant) is None


def test_the_component_has_what_the_pool_lacks() -> None:
    specification = component_specification(wanted(), "gpt-j-1", num_gpus=2, memory_mb=2048)
    action = component_action(wanted(), specification)
    validate(action)
    assert action.request["Specification"] == {
        "ModelName": "gpt-j-1",
        "ComputeResourceRequirements": {
            "NumberOfAcceleratorDevicesRequired": 2,
            "MinMemoryRequiredInMb": 2048,
        },
        "StartupParameters": {
            "ModelDataDownloadTimeoutInSeconds": 600,
            "ContainerStartupHealthCheckTimeoutInSeconds": 700,
        },
    }
    assert action.request["VariantName"] == "main"
    assert action.request["Tags"] == config_action(wanted(), "gpt-j-1").request["Tags"]


def test_asynchronous_endpoints_have_none() -> None:
    with pytest.raises(ValueError, match="asynchronous"):
        wanted(async_output="s3://a/")


@pytest.mark.parametrize(
    ("variant", "why"),
    [
        ({"ModelName": "m"}, "the model itself"),
        ({}, "does not manage its instances"),
        ({"ManagedInstanceScaling": {"Status": "DISABLED", "MinInstanceCount": 0}}, "does not manage"),
        ({"ManagedInstanceScaling": {"Status": "ENABLED", "MinInstanceCount": 2}}, "at least 2 instances"),
    ],
)
def test_why_a_variant_cannot_shrink_to_zero(variant: dict[str, Any], why: str) -> None:
    assert why in str(obstacle(variant))


def test_every_gpu_takes_a_copy() -> None:
    managed = {"ManagedInstanceScaling": {"MaxInstanceCount": 3}}
    assert most_copies({"InstanceType": "ml.g5.2xlarge", **managed}) == 3
    assert most_copies({"InstanceType": "ml.g5.12xlarge", **managed}) == 12
    assert most_copies({"InstanceType": "ml.m5.large", **managed}) is None
    assert most_copies({"InstanceType": "ml.g5.2xlarge"}) is None
