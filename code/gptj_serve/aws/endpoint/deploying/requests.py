"""Builds the calls that make an endpoint, as data, without asking AWS.

Models and configurations are named after a hash of their whole request: the same arguments give the same
names, so what exists under such a name is what is wanted.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.common.tags import to_list
from gptj_serve.aws.endpoint.lookup import MAX_NAME, TAG, VARIANT
from gptj_serve.aws.machines.instances import InstanceType
from gptj_serve.aws.model.in_s3 import ModelData

DATA_TAG = "gptj-serve:model-data"
"""The tag with a fingerprint of the model's files, because new files at an address make another model."""

TRAFFIC = ("auto", "canary", "all-at-once")

COPY_MEMORY_MB = 1024
"""Memory of the instance that a copy reserves; it may use more. It is small, because an instance offers much
less memory than it has, and refuses a copy whose reservation does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """An endpoint as its user wants it.

    Attributes:
        name: The endpoint's name.
        image: The image's address with its digest.
        data: The model's files.
        instance: The type of the instances.
        num_instances: How many instances there are at first.
        role_arn: The execution role.
        environment: The container's variables.
        has_metrics: Whether the container has Prometheus metrics.
        tags: The user's own tags.
        volume_gb: Size of each instance's disk; None for SageMaker's choice or the type's own disk.
        download_timeout_s, startup_timeout_s: None chooses them by the model's size.
        async_output: S3 prefix for answers; None for a real-time endpoint.
        async_concurrency: How many requests an instance of an asynchronous endpoint gets at once.
        subnets, security_groups: The network; both or neither.
        is_isolated: Whether the container has no network.
        inference_ami: Host image; None for the one that goes with the instance type.
        max_instances: The most instances of a pool, which may have none, and on which the model is an
            inference component. None for an endpoint that has the model itself.

    Raises:
        ValueError: A pool cannot be asynchronous.
    """

    name: str
    image: str
    data: ModelData
    instance: InstanceType
    num_instances: int
    role_arn: str
    environment: Mapping[str, str]
    has_metrics: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    volume_gb: int | None = None
    download_timeout_s: int | None = None
    startup_timeout_s: int | None = None
    async_output: str | None = None
    async_concurrency: int | None = None
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    is_isolated: bool = False
    inference_ami: str | None = None
    max_instances: int | None = None

    def __post_init__(self) -> None:
        if self.is_pool and self.async_output:
            raise ValueError(
                "an asynchronous endpoint has no inference components: its variant itself goes to zero"
            )

    @property
    def is_pool(self) -> bool:
        """Whether the model is an inference component, so that there may be no instance at all."""
        return self.max_instances is not None

    @property
    def all_tags(self) -> list[dict[str, str]]:
        """The user's tags, and the tag that says which endpoint everything belongs to."""
        return to_list({**self.tags, TAG: self.name})

    @property
    def ami(self) -> str | None:
        """The host image; None for types without a GPU."""
        return self.inference_ami or self.instance.ami

    @property
    def has_streams(self) -> bool:
        """Whether clients can have streams: the front with metrics has them on real-time endpoints."""
        return self.has_metrics and not self.async_output


@dataclass(frozen=True, slots=True)
class EndpointUpdate:
    """How an endpoint that serves is changed.

    Attributes:
        traffic: One of `TRAFFIC`.
        bake_s: How many seconds the new instances are watched before the old ones end, 0..3600.
        alarms: Names of the alarms that roll it back.
        num_instances: How many instances serve afterwards, from 0.
        keeps_count: Whether the number of instances stays what scaling made it.
    """

    traffic: str
    bake_s: int
    alarms: tuple[str, ...]
    num_instances: int
    keeps_count: bool = True

    @property
    def is_canary(self) -> bool:
        """Whether some instances get traffic first; a canary may be half of them at most."""
        return self.traffic != "all-at-once" and self.num_instances > 1


def check_name(name: str) -> str:
    """Check an endpoint's name; returns it.

    Raises:
        UsageError: SageMaker would refuse the name, or a name that is derived from it.
    """
    if len(name) > MAX_NAME or not re.fullmatch(r"[a-z0-9](-?[a-z0-9])*", name):
        raise UsageError(
            f"{name}: an endpoint's name has lower-case letters, digits and single hyphens between them, "
            f"{MAX_NAME} at most (SageMaker writes its ARN in lower case, and IAM compares that)"
        )
    return name


def model_action(wanted: EndpointSpec) -> Action:
    """The call that makes the model."""
    fingerprint = {DATA_TAG: wanted.data.fingerprint} if wanted.data.fingerprint else {}
    is_archive = wanted.data.is_archive
    source = {
        "S3Uri": wanted.data.uri,
        "S3DataType": "S3Object" if is_archive else "S3Prefix",
        "CompressionType": "Gzip" if is_archive else "None",
    }
    request: dict[str, Any] = {
        "ExecutionRoleArn": wanted.role_arn,
        "PrimaryContainer": {
            "Image": wanted.image,
            "ModelDataSource": {"S3DataSource": source},
            "Environment": dict(wanted.environment),
        },
        "EnableNetworkIsolation": wanted.is_isolated,
        "Tags": to_list({**wanted.tags, **fingerprint, TAG: wanted.name}),
        **_network(wanted),
    }
    return _named("create_model", "ModelName", wanted.name, request, "the image, with the model's files")


def config_action(wanted: EndpointSpec, model: str) -> Action:
    """The call that makes the endpoint's configuration.

    Args:
        wanted: The endpoint.
        model: Name of the endpoint's model; a pool's configuration has none.
    """
    request: dict[str, Any] = {
        "ProductionVariants": [_variant(wanted, model)],
        "MetricsConfig": {
            "EnableEnhancedMetrics": True,
            "EnableDetailedObservability": wanted.has_metrics,
            "MetricPublishFrequencyInSeconds": 60,
        },
        "Tags": wanted.all_tags,
    }
    if wanted.is_pool:
        # these belong to the model, but SageMaker wants them before there is one
        request["ExecutionRoleArn"] = wanted.role_arn
        request["EnableNetworkIsolation"] = wanted.is_isolated
        request |= _network(wanted)
    if wanted.async_output:
        concurrency = wanted.async_concurrency
        request["AsyncInferenceConfig"] = {
            "OutputConfig": {
                "S3OutputPath": wanted.async_output,
                "S3FailurePath": f"{wanted.async_output.rstrip('/')}/failures/",
            },
            **({"ClientConfig": {"MaxConcurrentInvocationsPerInstance": concurrency}} if concurrency else {}),
        }
    what = f"{wanted.num_instances} x {wanted.instance.name}{', without a model' if wanted.is_pool else ''}"
    return _named("create_endpoint_config", "EndpointConfigName", wanted.name, request, what)


def endpoint_action(wanted: EndpointSpec, config: str) -> Action:
    """The call that makes the endpoint."""
    request = {
        "EndpointName": wanted.name,
        "EndpointConfigName": config,
        "Tags": wanted.all_tags,
    }
    return Action("sagemaker", "create_endpoint", request, "from here on it costs")


def component_specification(
    wanted: EndpointSpec, model: str, *, num_gpus: int = 1, memory_mb: int = COPY_MEMORY_MB
) -> dict[str, Any]:
    """What a copy of the model on a pool runs, and what it reserves.

    Args:
        wanted: The endpoint.
        model: Name of the endpoint's model.
        num_gpus: How many GPUs a copy has to itself: the service's TENSOR_PARALLEL_DEGREE.
        memory_mb: How much memory of the instance a copy reserves, at least 128.
    """
    needs = {"NumberOfAcceleratorDevicesRequired": num_gpus, "MinMemoryRequiredInMb": memory_mb}
    return {
        "ModelName": model,
        "ComputeResourceRequirements": needs,
        "StartupParameters": _timeouts(wanted),
    }


def component_action(wanted: EndpointSpec, specification: Mapping[str, Any]) -> Action:
    """The call that puts a copy on a pool, as an inference component with the endpoint's name."""
    request = {
        "InferenceComponentName": wanted.name,
        "EndpointName": wanted.name,
        "VariantName": VARIANT,
        "Specification": specification,
        "RuntimeConfig": {"CopyCount": 1},
        "Tags": wanted.all_tags,
    }
    return Action("sagemaker", "create_inference_component", request, "the model, on one of the GPUs")


def num_desired(endpoint: Mapping[str, Any] | None, at_first: int) -> int:
    """How many instances an endpoint is meant to have by now, as far as AWS says."""
    variants = (endpoint or {}).get("ProductionVariants") or [{}]
    return int(variants[0].get("DesiredInstanceCount", at_first))


def update_action(name: str, config: str, update: EndpointUpdate) -> Action:
    """The call that moves an endpoint to another configuration, without a gap."""
    routing: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": update.bake_s}
    if update.is_canary:
        size = {"Type": "INSTANCE_COUNT", "Value": max(1, update.num_instances // 10)}
        routing = {"Type": "CANARY", "WaitIntervalInSeconds": update.bake_s, "CanarySize": size}
    deployment: dict[str, Any] = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
    if update.alarms:
        deployment["AutoRollbackConfiguration"] = {"Alarms": [{"AlarmName": one} for one in update.alarms]}
    request = {
        "EndpointName": name,
        "EndpointConfigName": config,
        "RetainAllVariantProperties": update.keeps_count,
        "DeploymentConfig": deployment,
    }
    return Action(
        "sagemaker", "update_endpoint", request, "new instances beside the old ones, then the traffic"
    )


def download_timeout_s(data: ModelData) -> int:
    """Time for the model's files to reach the instance's disk: 5 minutes, and 50 MB/s (archives: 12 MB/s)."""
    return _timeout(300 + data.num_bytes / (12e6 if data.is_archive else 50e6))


def startup_timeout_s(data: ModelData) -> int:
    """Time from the container's start to its first healthy answer: 5 minutes, and 40 MB/s from the disk."""
    return _timeout(300 + data.num_bytes / 40e6)


def _variant(wanted: EndpointSpec, model: str) -> dict[str, Any]:
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        **({} if wanted.is_pool else {"ModelName": model}),
        "InstanceType": wanted.instance.name,
        "InitialInstanceCount": wanted.num_instances,
        "InitialVariantWeight": 1.0,
        **({} if wanted.is_pool else _timeouts(wanted)),
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
    }
    if wanted.ami:
        variant["InferenceAmiVersion"] = wanted.ami
    if wanted.instance.takes_volume:
        variant["VolumeSizeInGB"] = wanted.volume_gb or _volume_gb(wanted.data)
    if wanted.is_pool:
        limits = {"MinInstanceCount": 0, "MaxInstanceCount": wanted.max_instances}
        variant["ManagedInstanceScaling"] = {"Status": "ENABLED", **limits}
    return variant


def _timeouts(wanted: EndpointSpec) -> dict[str, int]:
    return {
        "ModelDataDownloadTimeoutInSeconds": wanted.download_timeout_s or download_timeout_s(wanted.data),
        "ContainerStartupHealthCheckTimeoutInSeconds": wanted.startup_timeout_s
        or startup_timeout_s(wanted.data),
    }


def _network(wanted: EndpointSpec) -> dict[str, Any]:
    if not wanted.subnets:
        return {}
    groups = list(wanted.security_groups)
    return {"VpcConfig": {"Subnets": list(wanted.subnets), "SecurityGroupIds": groups}}


def _volume_gb(data: ModelData) -> int:
    # of an archive there are the archive and the unpacked files, which are there twice while they are moved
    copies = 3 if data.is_archive else 1
    return min(512, 30 + math.ceil(copies * data.num_bytes / 1e9))


def _timeout(seconds: float) -> int:
    return min(3600, max(60, math.ceil(seconds / 60) * 60))


def _named(operation: str, key: str, name: str, request: dict[str, Any], note: str) -> Action:
    """A call that makes something that is named after the endpoint and a hash of the whole request.

    Args:
        operation: boto3's name of the call.
        key: The member that names what is made.
        name: The endpoint's name.
        request: The other members.
        note: What the call is for.
    """
    text = json.dumps(request, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return Action("sagemaker", operation, {key: f"{name}-{digest}", **request}, note)
