"""Looks up what exists of an endpoint: single descriptions, and everything that belongs to it.

Whatever is ours carries the tag `TAG` with the endpoint's name. Models and endpoint configurations are also
named ``NAME-`` plus eight hexadecimal digits. Nothing else is ever changed or deleted.
"""

import argparse
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.errors import CommandError

Description = Mapping[str, Any]
"""What AWS says about one thing."""

TAG = "gptj-serve:endpoint"
"""Key of the tag that everything made for an endpoint carries; the value is the endpoint's name."""

VARIANT = "main"
"""The name of the only production variant."""

MAX_NAME = 54
"""The most characters of an endpoint's name: configurations add nine, and SageMaker takes 63."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What belongs to an endpoint, by name.

    Attributes:
        endpoint: The endpoint's description; None if there is none.
        configs: Endpoint configurations.
        models: Models.
        alarms: CloudWatch alarms, each with its description.
        foreign_alarms: Names of alarms that are named as ours are but were made by somebody else.
    """

    endpoint: Mapping[str, Any] | None
    configs: tuple[str, ...]
    models: tuple[str, ...]
    alarms: tuple[Mapping[str, Any], ...]
    foreign_alarms: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing exists."""
        return self.endpoint is None and not (self.configs or self.models or self.alarms)


def is_missing(error: ClientError) -> bool:
    """Whether an error says that what was asked for does not exist."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    if code in ("ResourceNotFound", "ResourceNotFoundException", "NoSuchEntity", "404", "NoSuchKey"):
        return True
    # SageMaker has no error code of its own for this
    return (
        code in ("ValidationException", "ValidationError")
        and re.match(r"(?i)could not find", message) is not None
    )


def describe_endpoint(sagemaker: Any, name: str) -> Description | None:
    """An endpoint's description, None if there is none."""
    return or_none(sagemaker.describe_endpoint, EndpointName=name)


def describe_config(sagemaker: Any, name: str) -> Description | None:
    """An endpoint configuration's description, None if there is none."""
    return or_none(sagemaker.describe_endpoint_config, EndpointConfigName=name)


def describe_model(sagemaker: Any, name: str) -> Description | None:
    """A model's description, None if there is none."""
    return or_none(sagemaker.describe_model, ModelName=name)


def describe_component(sagemaker: Any, name: str) -> Description | None:
    """An inference component's description, None if there is none."""
    return or_none(sagemaker.describe_inference_component, InferenceComponentName=name)


def find_resources(sagemaker: Any, cloudwatch: Any, name: str) -> Resources:
    """Find everything that belongs to an endpoint of ours.

    Args:
        sagemaker: boto3 client.
        cloudwatch: boto3 client.
        name: The endpoint's name; the endpoint need not exist (any more).
    """
    alarms, foreign = find_alarms(cloudwatch, name)
    return Resources(
        endpoint=describe_endpoint(sagemaker, name),
        configs=tuple(_ours(sagemaker, "list_endpoint_configs", "EndpointConfig", name)),
        models=tuple(_ours(sagemaker, "list_models", "Model", name)),
        alarms=alarms,
        foreign_alarms=foreign,
    )


def alarm_prefix(name: str) -> str:
    """What the names of an endpoint's alarms begin with."""
    return f"gptj-serve/{name}/"


def find_alarms(cloudwatch: Any, name: str) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """The alarms of an endpoint, and the names of alarms that only look as if they belonged to it."""
    pages = cloudwatch.get_paginator("describe_alarms").paginate(AlarmNamePrefix=alarm_prefix(name))
    found = [alarm for page in pages for alarm in page["MetricAlarms"]]
    tags = [cloudwatch.list_tags_for_resource(ResourceARN=alarm["AlarmArn"])["Tags"] for alarm in found]
    ours = [{"Key": TAG, "Value": name} in one for one in tags]
    return (
        tuple(alarm for alarm, is_ours in zip(found, ours, strict=True) if is_ours),
        tuple(alarm["AlarmName"] for alarm, is_ours in zip(found, ours, strict=True) if not is_ours),
    )


def check_alarms_ours(wanted: Iterable[str], foreign: Iterable[str], hint: str) -> None:
    """Check that nobody else's alarm has a name that one of ours would get.

    Args:
        wanted: Names of alarms that are about to be made.
        foreign: Names of `Resources.foreign_alarms`.
        hint: What to do besides deleting it.

    Raises:
        CommandError: There is such an alarm.
    """
    if taken := sorted({*wanted} & {*foreign}):
        raise CommandError(
            f"the alarm {taken[0]} was not made by these commands (it has no tag {TAG}), so it is left alone",
            f"`aws cloudwatch delete-alarms --alarm-names {taken[0]}` takes it out of the way; {hint}",
        )


def _ours(sagemaker: Any, operation: str, kind: str, name: str) -> Iterator[str]:
    """The names of an endpoint's models or configurations, whose APIs are alike."""
    pattern = re.compile(re.escape(name) + r"-[0-9a-f]{8}")
    for page in sagemaker.get_paginator(operation).paginate(NameContains=f"{name}-"):
        for item in page[f"{kind}s"]:
            if pattern.fullmatch(item[f"{kind}Name"]) and has_tag(sagemaker, item[f"{kind}Arn"], name):
                yield item[f"{kind}Name"]


def endpoint_name(text: str) -> str:
    """Read an endpoint's name from a command line.

    Raises:
        ArgumentTypeError: SageMaker cannot have an endpoint of that name.
    """
    if not re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: an endpoint's name has letters, digits and hyphens between them, 63 at most"
        )
    return text


def has_tag(sagemaker: Any, arn: str, name: str) -> bool:
    """Whether a resource of SageMaker was made for an endpoint of ours."""
    tags = or_none(sagemaker.list_tags, ResourceArn=arn) or {}
    return {"Key": TAG, "Value": name} in tags.get("Tags", [])


def check_ours(sagemaker: Any, name: str, endpoint: Mapping[str, Any] | None, hint: str) -> None:
    """Check that an endpoint, if there is one, was made by us.

    Args:
        sagemaker: boto3 client.
        name: The endpoint's name.
        endpoint: The endpoint's description.
        hint: What to do if it was not made by us.

    Raises:
        CommandError: Somebody else made it.
    """
    if endpoint and not has_tag(sagemaker, endpoint["EndpointArn"], name):
        raise CommandError(
            f"{name} was not made by scripts/deploy (it has no tag {TAG}), so it is left alone", hint
        )


def or_none(call: Callable[..., Mapping[str, Any]], **request: str) -> Description | None:
    """A call's answer; None if what it asks for does not exist."""
    try:
        return call(**request)
    except ClientError as error:
        if is_missing(error):
            return None
        raise
