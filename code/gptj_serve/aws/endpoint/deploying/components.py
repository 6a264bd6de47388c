"""Requests for an endpoint that hosts the model as an inference component, and so can shrink to zero.

Then the endpoint's variant is a pool of instances without a model. The model is in a component, which says
what one copy of it takes; SageMaker puts copies on instances, and adds or removes those. What else a variant
says of its model moves: timeouts to the component, network and role to the endpoint configuration. SageMaker
cannot turn an endpoint of one kind into the other.
"""

from collections.abc import Mapping
from typing import Any

from gptj_serve.aws.machines.instances import find_instance

COPY_MEMORY_MB = 1024
"""Memory of the instance that a copy reserves. It is no limit: a copy may use more. Small, because an
instance offers much less than it has, and refuses a copy whose reservation does not fit."""

_TIMEOUTS = ("ModelDataDownloadTimeoutInSeconds", "ContainerStartupHealthCheckTimeoutInSeconds")


def component_config(
    config: Mapping[str, Any], model: Mapping[str, Any], max_instances: int
) -> dict[str, Any]:
    """The configuration of an endpoint for components, from one for the model itself.

    Args:
        config: A request for CreateEndpointConfig with one variant.
        model: The request for CreateModel that goes with it.
        max_instances: Instances at most, from 1; at least none.

    Raises:
        ValueError: Asynchronous endpoints cannot have components.
    """
    if "AsyncInferenceConfig" in config:
        raise ValueError(
            "an asynchronous endpoint has no inference components: its variant itself goes to zero"
        )
    (variant,) = config["ProductionVariants"]
    moved = {"ModelName", *_TIMEOUTS}
    pool = {key: value for key, value in variant.items() if key not in moved}
    pool["ManagedInstanceScaling"] = {
        "Status": "ENABLED",
        "MinInstanceCount": 0,
        "MaxInstanceCount": max_instances,
    }
    # these are the model's, but SageMaker wants to know them before there is any
    kept = {key: model[key] for key in ("EnableNetworkIsolation", "VpcConfig") if key in model}
    return {
        **config,
        "ProductionVariants": [pool],
        "ExecutionRoleArn": model["ExecutionRoleArn"],
        **kept,
    }


def component_request(
    name: str,
    endpoint: str,
    config: Mapping[str, Any],
    *,
    num_gpus: int = 1,
    memory_mb: int = COPY_MEMORY_MB,
) -> dict[str, Any]:
    """The request for CreateInferenceComponent: one copy of the model.

    Args:
        name: Of the component.
        endpoint: Of the endpoint that hosts it.
        config: The same request that `component_config` took; it names the model and its timeouts.
        num_gpus: GPUs a copy has to itself: the service's TENSOR_PARALLEL_DEGREE.
        memory_mb: Memory of the instance reserved for a copy, at least 128.
    """
    (variant,) = config["ProductionVariants"]
    specification: dict[str, Any] = {
        "ModelName": variant["ModelName"],
        "ComputeResourceRequirements": {
            "NumberOfAcceleratorDevicesRequired": num_gpus,
            "MinMemoryRequiredInMb": memory_mb,
        },
    }
    startup = {key: variant[key] for key in _TIMEOUTS if key in variant}
    if startup:
        specification["StartupParameters"] = startup
    return {
        "InferenceComponentName": name,
        "EndpointName": endpoint,
        "VariantName": variant["VariantName"],
        "Specification": specification,
        "RuntimeConfig": {"CopyCount": 1},
        "Tags": config.get("Tags", []),
    }


def obstacle(variant: Mapping[str, Any]) -> str | None:
    """Why a variant cannot shrink to zero; None when it can.

    Args:
        variant: Of the endpoint's configuration, as described or requested.
    """
    if "ModelName" in variant:
        return "its variant has the model itself, not an inference component"
    managed = variant.get("ManagedInstanceScaling", {})
    if managed.get("Status") != "ENABLED":
        return "SageMaker does not manage its instances (ManagedInstanceScaling)"
    smallest = managed.get("MinInstanceCount")
    if smallest != 0:
        return f"its configuration asks for at least {smallest} instances (ManagedInstanceScaling)"
    return None


def most_copies(variant: Mapping[str, Any]) -> int | None:
    """Copies that the instances of a variant have GPUs for, one each; None if that is not known.

    Args:
        variant: Of the endpoint's configuration, as described or requested.
    """
    instance = find_instance(variant.get("InstanceType", ""))
    most = variant.get("ManagedInstanceScaling", {}).get("MaxInstanceCount")
    return most * instance.num_gpus if most and instance and instance.num_gpus else None
