"""Requests for an endpoint without a model and the component on it: botocore takes them."""

from typing import Any

import pytest

from gptj_serve.aws.common.plan import Action, validate
from gptj_serve.aws.endpoint.deploying.components import (
    component_config,
    component_request,
    most_copies,
    obstacle,
)

MODEL = {
    "ModelName": "gpt-j-1",
    "ExecutionRoleArn": "arn:aws:iam::123456789012:role/x",
    "EnableNetworkIsolation": True,
    "VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
}
CONFIG: dict[str, Any] = {
    "EndpointConfigName": "gpt-j-2",
    "Tags": [{"Key": "a", "Value": "b"}],
    "ProductionVariants": [
        {
            "VariantName": "main",
            "ModelName": "gpt-j-1",
            "InstanceType": "ml.g5.2xlarge",
            "InitialInstanceCount": 1,
            "ModelDataDownloadTimeoutInSeconds": 600,
            "ContainerStartupHealthCheckTimeoutInSeconds": 700,
            "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
            "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        }
    ],
}


def test_the_pool_has_all_but_the_model() -> None:
    request = component_config(CONFIG, MODEL, 3)
    validate(Action("sagemaker", "create_endpoint_config", request))
    (variant,) = request["ProductionVariants"]
    assert variant == {
        "VariantName": "main",
        "InstanceType": "ml.g5.2xlarge",
        "InitialInstanceCount": 1,
        "InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1",
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        "ManagedInstanceScaling": {"Status": "ENABLED", "MinInstanceCount": 0, "MaxInstanceCount": 3},
    }
    for key in ("ExecutionRoleArn", "EnableNetworkIsolation", "VpcConfig"):
        assert request[key] == MODEL[key]
    assert CONFIG["ProductionVariants"][0]["ModelName"] == "gpt-j-1"
    assert obstacle(variant) is None


def test_the_component_has_what_the_pool_lacks() -> None:
    request = component_request("gpt-j", "gpt-j", CONFIG, num_gpus=2, memory_mb=2048)
    validate(Action("sagemaker", "create_inference_component", request))
    assert request["Specification"] == {
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
    assert request["VariantName"] == "main"
    assert request["Tags"] == CONFIG["Tags"]


def test_asynchronous_endpoints_have_none() -> None:
    config = {**CONFIG, "AsyncInferenceConfig": {"OutputConfig": {"S3OutputPath": "s3://a/"}}}
    with pytest.raises(ValueError, match="asynchronous"):
        component_config(config, MODEL, 1)


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
