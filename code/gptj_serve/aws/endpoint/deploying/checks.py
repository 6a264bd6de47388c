"""Finds beforehand what would fail minutes later: instance types, memory, updates that SageMaker refuses."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError
from gptj_serve.aws.endpoint.alarms import our_alarms
from gptj_serve.aws.endpoint.deploying.requests import EndpointSpec, EndpointUpdate
from gptj_serve.aws.endpoint.lookup import VARIANT
from gptj_serve.aws.machines.fit import why_it_does_not_fit
from gptj_serve.aws.machines.instances import (
    PRICES_AS_OF,
    InstanceType,
    find_instance,
    one_gpu_sibling,
    why_not,
)
from gptj_serve.aws.model.in_s3 import ModelData, config_or_default
from gptj_serve.settings import Settings


def find_type(name: str, volume_gb: int | None) -> InstanceType:
    """The instance type of a name.

    Raises:
        UsageError: There is no such type, it cannot work, or it takes no volume.
    """
    instance = find_instance(name)
    if instance is None:
        raise UsageError(f"--instance-type {why_not(name)}")
    if volume_gb and not instance.takes_volume:
        raise UsageError(f"--volume-gb: {name} has a disk of its own, and SageMaker takes no other")
    return instance


def check_ami(instance: InstanceType, ami: str | None) -> None:
    """Check that an instance type takes a host image.

    Raises:
        UsageError: The type has no GPU and so no choice of an image, or the image does not exist.
    """
    if ami is None:
        return
    if instance.gpu is None:
        raise UsageError(f"--inference-ami: {instance.name} has no GPU, and SageMaker no choice for it")
    if not re.fullmatch(r"[a-z0-9]+-ami-sagemaker-inference-gpu-[0-9]+(-[0-9]+)*", ami):
        raise UsageError(f"--inference-ami {ami}: not one for a GPU; it looks like {instance.ami}")


def check_room(instance: InstanceType, max_count: int) -> None:
    """Check that an endpoint for inference components has one GPU more than a copy takes.

    Raises:
        UsageError: It has not.
    """
    if instance.gpu is None:
        raise UsageError(
            f"--to-zero: a copy of the model takes a GPU, and {instance.name} has none",
            "--instance-type ml.g4dn.2xlarge has one",
        )
    if max_count * instance.num_gpus < 2:
        raise UsageError(
            f"--max-count {max_count}: an update starts a new copy beside the old one, and "
            f"{max_count} x {instance.name} has one GPU; the limit itself can never be changed",
            "--max-count 2, or more; what is not needed is not started",
        )


def costs(wanted: EndpointSpec, kind: str) -> tuple[str, ...]:
    """What the user should know before anything that costs is made, a sentence each; may be empty.

    Args:
        wanted: The endpoint.
        kind: The kind of the `Rollout`.
    """
    if kind == "none":
        return ()
    count, name = wanted.num_instances, wanted.instance.name
    price = wanted.instance.price_usd_hour
    money = "an amount that is not known here" if price is None else f"about ${price * count:.2f}"
    where = (
        f"{count} x {name}; list price in us-east-1, {PRICES_AS_OF}; see aws.amazon.com/sagemaker/ai/pricing"
    )
    while_ = "While the update lasts, it costs in addition" if kind == "update" else "From here on it costs"
    until = "" if kind == "update" else f", until `scripts/delete {wanted.name}`"
    num_needed = 2 * count if kind == "update" else count
    return (
        f"{while_} {money} an hour ({where}){until}.",
        f'The quota "{name} for endpoint usage" (Service Quotas, Amazon SageMaker) is 0 in a new account: '
        f"it has to be {num_needed} or more{'' if kind == 'update' else ', and twice that for updates'}.",
    )


def warn(instance: InstanceType, console: Console, *, uses_all_gpus: bool) -> None:
    """Warn of what the user should know about an instance type."""
    if instance.warning:
        console.progress(f"Warning: {instance.name}: {instance.warning}.")
    if instance.num_gpus > 1 and not uses_all_gpus:
        sibling = one_gpu_sibling(instance)
        better = f": {sibling.name} does the same for less" if sibling else ""
        has = f"{instance.name} has {instance.num_gpus} GPUs"
        console.progress(f"Warning: {has}, and the service uses one of them{better}.")


def check_fit(instance: InstanceType, data: ModelData, settings: Settings) -> None:
    """Check that the model fits the GPU.

    Raises:
        CommandError: It does not; the message says what would.
    """
    config = config_or_default(data)
    context = min(settings.max_context or config.max_positions, config.max_positions)
    told = why_it_does_not_fit(config, instance, context, settings.max_batch_size)
    if told:
        raise CommandError(*told)


def check_alarms(name: str, alarms: Iterable[Mapping[str, Any]]) -> None:
    """Check that no alarm would roll an update back at once.

    Args:
        name: The endpoint's name.
        alarms: The endpoint's alarms.

    Raises:
        CommandError: An alarm has gone off.
    """
    raised = [one["AlarmName"] for one in our_alarms(name, alarms) if one.get("StateValue") == "ALARM"]
    if raised:
        raise CommandError(
            f"{', '.join(raised)}: in alarm now, which would call the update off at once",
            "wait until the endpoint is well again, or pass --no-alarms",
        )


def check_update(aws: Aws, wanted: EndpointSpec, current: Mapping[str, Any] | None) -> None:
    """Check that SageMaker can update the endpoint as it is to what is wanted.

    Args:
        aws: The account and region.
        wanted: The endpoint as it is wanted.
        current: The endpoint's present configuration; None if that is gone.

    Raises:
        CommandError: It cannot; the message says what to do.
    """
    if current is None:
        return
    if ("AsyncInferenceConfig" in current) != bool(wanted.async_output):
        kind = "asynchronous" if "AsyncInferenceConfig" in current else "a real-time endpoint"
        raise CommandError(
            f"{wanted.name} is {kind}, and stays so: its clients call it in another way",
            "give the other one another name, or delete this one first: scripts/delete " + wanted.name,
        )
    variant = current["ProductionVariants"][0]
    if variant["VariantName"] != VARIANT or "ModelName" not in variant:
        raise CommandError(
            f"{wanted.name} was made with --to-zero, or not by this command: it cannot be updated without it",
            f"give the new endpoint another name, or delete this one first: scripts/delete {wanted.name}",
        )
    if variant["InstanceType"] != wanted.instance.name:
        _check_scaling(aws, wanted)


def check_traffic(update: EndpointUpdate) -> None:
    """Check that an endpoint's instances can be divided.

    Raises:
        UsageError: A canary is asked for, and there is only one instance.
    """
    if update.traffic == "canary" and not update.is_canary:
        raise UsageError("--traffic canary: the endpoint has one instance by now, which cannot be divided")


def _check_scaling(aws: Aws, wanted: EndpointSpec) -> None:
    resource = f"endpoint/{wanted.name}/variant/{VARIANT}"
    answer = aws.client("application-autoscaling").describe_scalable_targets(
        ServiceNamespace="sagemaker", ResourceIds=[resource]
    )
    if answer["ScalableTargets"]:
        raise CommandError(
            f"{wanted.name} scales by itself, and SageMaker changes no instance type then",
            f"switch that off first, and on again afterwards: scripts/scale {wanted.name} --off",
        )
