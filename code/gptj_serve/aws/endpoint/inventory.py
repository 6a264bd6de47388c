"""Finds everything that belongs to an endpoint: what `lookup` finds, its components and its scaling."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.endpoint import autoscaling
from gptj_serve.aws.endpoint.lookup import (
    TAG,
    Description,
    Resources,
    check_alarms_ours,
    describe_component,
    find_alarms,
    find_resources,
    has_tag,
    is_missing,
)


@dataclass(frozen=True, slots=True)
class Scaling:
    """A scalable target with its policies, as AWS describes them."""

    target: Description
    policies: tuple[Description, ...]


@dataclass(frozen=True, slots=True)
class Inventory:
    """What exists of an endpoint.

    Attributes:
        name: The endpoint's name; the endpoint need not exist (any more).
        resources: Endpoint, configurations, models and alarms.
        components: The endpoint's inference components.
        scaling: The targets that scale.
    """

    name: str
    resources: Resources
    components: tuple[Description, ...]
    scaling: tuple[Scaling, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing exists."""
        return self.resources.is_empty and not (self.components or self.scaling)


def take_inventory(aws: Aws, name: str) -> Inventory:
    """Look for everything; AWS is only asked.

    Args:
        aws: The account and region.
        name: The endpoint's name.
    """
    components = find_components(aws, name)
    names = {one["InferenceComponentName"] for one in components}
    if describe_component(aws.client("sagemaker"), name) is None:
        # a component may be gone and its scaling left; the scaling of another endpoint's is not ours
        names.add(name)
    return Inventory(
        name=name,
        resources=find_resources(aws.client("sagemaker"), aws.client("cloudwatch"), name),
        components=components,
        scaling=find_scaling(aws, name, names),
    )


def find_components(aws: Aws, name: str) -> tuple[Description, ...]:
    """The inference components of an endpoint; they may outlive it."""
    sagemaker = aws.client("sagemaker")
    pages = sagemaker.get_paginator("list_inference_components").paginate(EndpointNameEquals=name)
    try:
        names = [item["InferenceComponentName"] for page in pages for item in page["InferenceComponents"]]
    except ClientError as error:
        if not is_missing(error):
            raise
        names = []  # these are of an endpoint that is gone
    found = (describe_component(sagemaker, one) for one in names)
    return tuple(one for one in found if one is not None)


def check_component(aws: Aws, endpoint: str, component: Description | None, hint: str) -> None:
    """Check that an inference component, if there is one, was made by us for an endpoint.

    Args:
        aws: The account and region.
        endpoint: The endpoint's name.
        component: The component's description.
        hint: What to do if it was not made by us.

    Raises:
        CommandError: Somebody else made it, or it belongs to another endpoint.
    """
    if component is None:
        return
    name = component["InferenceComponentName"]
    if component["EndpointName"] != endpoint:
        raise CommandError(
            f"the inference component {name} belongs to the endpoint {component['EndpointName']}, "
            "so it is left alone",
            hint,
        )
    if not has_tag(aws.client("sagemaker"), component["InferenceComponentArn"], endpoint):
        raise CommandError(
            f"the inference component {name} was not made by scripts/deploy (it has no tag {TAG}), "
            "so it is left alone",
            hint,
        )


def find_scaling(aws: Aws, name: str, components: Iterable[str]) -> tuple[Scaling, ...]:
    """The scaling of an endpoint's variants and components.

    Args:
        aws: The account and region.
        name: The endpoint's name.
        components: Names of the endpoint's components.
    """
    client = aws.client(autoscaling.SERVICE)
    ids = {f"inference-component/{one}" for one in components}
    pages = client.get_paginator("describe_scalable_targets").paginate(ServiceNamespace="sagemaker")
    targets = [
        target
        for page in pages
        for target in page["ScalableTargets"]
        if target["ResourceId"] in ids or target["ResourceId"].startswith(f"endpoint/{name}/variant/")
    ]
    return tuple(Scaling(target, _policies(client, target)) for target in targets)


def existing(aws: Aws, it: autoscaling.Scalable) -> autoscaling.FoundScaling:
    """The scaling that exists already of something."""
    client = aws.client(autoscaling.SERVICE)
    request = {key: value for key, value in it.key.items() if key != "ResourceId"}
    found = client.describe_scalable_targets(ResourceIds=[it.resource_id], **request)["ScalableTargets"]
    alarms, foreign = find_alarms(aws.client("cloudwatch"), it.endpoint)
    check_alarms_ours([it.alarm], foreign, f"`scripts/status {it.endpoint}` shows what is ours")
    return autoscaling.FoundScaling(
        target=found[0] if found else None,
        policies=_policies(client, it.key),
        alarm=next((alarm for alarm in alarms if alarm["AlarmName"] == it.alarm), None),
    )


def _policies(client: Any, target: Description) -> tuple[Description, ...]:
    key = {name: target[name] for name in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
    pages = client.get_paginator("describe_scaling_policies").paginate(**key)
    return tuple(policy for page in pages for policy in page["ScalingPolicies"])
