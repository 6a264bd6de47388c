"""Reports what exists of an endpoint, what it costs and what is wrong, from AWS's descriptions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.endpoint.inventory import Inventory, Scaling
from gptj_serve.aws.endpoint.lookup import Description, alarm_prefix
from gptj_serve.aws.machines.instances import find_instance

HOURS_A_DAY = 24


@dataclass(frozen=True, slots=True)
class Fleet:
    """The instances of one variant.

    Attributes:
        variant: The variant's name.
        instance_type: For example ``ml.g4dn.2xlarge``; None if the configuration is gone.
        current: How many instances there are.
        desired: How many instances there are meant to be.
        usd_an_hour: List price of all current instances; None if it is not known.
    """

    variant: str
    instance_type: str | None
    current: int
    desired: int
    usd_an_hour: float | None


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model that runs: its image, its data, and the service's own settings."""

    name: str
    image: str | None
    data: str | None
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """An inference component."""

    name: str
    status: str
    current_copies: int
    desired_copies: int
    failure: str | None


@dataclass(frozen=True, slots=True)
class ScalingReport:
    """What Application Auto Scaling does; `target` is None where no policy says."""

    resource_id: str
    smallest: int
    largest: int
    target: float | None
    suspended: bool


@dataclass(frozen=True, slots=True)
class AlarmReport:
    """An alarm; `rolls_back` says that it rolls updates back."""

    name: str
    state: str
    reason: str
    rolls_back: bool


@dataclass(frozen=True, slots=True)
class Report:
    """The whole report; `status` is None when the endpoint does not exist any more (or not yet)."""

    name: str
    status: str | None
    failure: str | None
    changed: str | None
    config: str | None
    update: str | None
    fleets: tuple[Fleet, ...]
    models: tuple[ModelReport, ...]
    components: tuple[ComponentReport, ...]
    scaling: tuple[ScalingReport, ...]
    alarms: tuple[AlarmReport, ...]
    left_over: tuple[str, ...]
    usd_an_hour: float | None


def make_report(inventory: Inventory, config: Description | None, models: tuple[Description, ...]) -> Report:
    """Make the report without asking AWS.

    Args:
        inventory: What exists.
        config: The endpoint's configuration; None if it is gone.
        models: The models that run.
    """
    endpoint = inventory.resources.endpoint or {}
    variants = (config or {}).get("ProductionVariants", [])
    types = {one["VariantName"]: one.get("InstanceType") for one in variants}
    # SageMaker ends the instances of an endpoint that never came up, but still describes them
    running = [] if endpoint.get("EndpointStatus") == "Failed" else endpoint.get("ProductionVariants", [])
    fleets = tuple(_fleet(one, types) for one in running)
    changed = endpoint.get("LastModifiedTime")
    return Report(
        name=inventory.name,
        status=endpoint.get("EndpointStatus"),
        failure=endpoint.get("FailureReason"),
        changed=changed.isoformat(timespec="seconds") if changed else None,
        config=endpoint.get("EndpointConfigName"),
        update=_update(endpoint),
        fleets=fleets,
        models=tuple(map(report_model, models)),
        components=tuple(map(_component, inventory.components)),
        scaling=tuple(map(_scaling, inventory.scaling)),
        alarms=tuple(_alarms(inventory, endpoint)),
        left_over=_left_over(inventory, endpoint, models),
        usd_an_hour=total([fleet.usd_an_hour for fleet in fleets]),
    )


def total(prices: list[float | None]) -> float | None:
    """The sum of the prices; None if one of them is not known."""
    known = [price for price in prices if price is not None]
    return round(sum(known), 4) if len(known) == len(prices) else None


def hints(report: Report) -> Iterator[str]:
    """What the user should know or do, a sentence each."""
    name = report.name
    if report.status is None:
        yield f"there is no endpoint {name}; `scripts/delete {name}` removes what is left"
    if report.status in ("Failed", "UpdateRollbackFailed", "OutOfService"):
        yield f"the container's log is /aws/sagemaker/Endpoints/{name}; delete it and deploy again"
    for fleet in report.fleets:
        if fleet.current != fleet.desired:
            there = f"{fleet.current} of {fleet.desired} instances are there"
            yield f"{there}: it grows, shrinks, or AWS has none left"
    for component in report.components:
        if component.failure:
            yield f"component {component.name}: {component.failure}"
        if component.desired_copies > component.current_copies:
            yield f"{component.current_copies} of {component.desired_copies} copies are there"
        if component.desired_copies == 0:
            yield "it has shrunk to zero: a request fails now, and makes it start; that takes minutes"
    for alarm in report.alarms:
        if alarm.state == "ALARM" and alarm.rolls_back:
            yield f"{alarm.name} is on, and an update would be rolled back: {alarm.reason}"
        elif alarm.state == "ALARM":
            yield f"{alarm.name} is on: {alarm.reason}"
    if any(one.suspended for one in report.scaling):
        yield "scaling is suspended (RegisterScalableTarget: SuspendedState)"


def _fleet(variant: Description, types: Mapping[str, str | None]) -> Fleet:
    instance_type = types.get(variant["VariantName"])
    desired = int(variant.get("DesiredInstanceCount", 0))
    # it is missing while the endpoint is created: what was asked for is on its way
    current = int(variant.get("CurrentInstanceCount", desired))
    instance = find_instance(instance_type) if instance_type else None
    price = instance.price_usd_hour if instance else None
    cost = 0.0 if current == 0 else None if price is None else round(price * current, 4)
    return Fleet(variant["VariantName"], instance_type, current, desired, cost)


def _update(endpoint: Description) -> str | None:
    pending = endpoint.get("PendingDeploymentSummary")
    if not pending:
        return None
    states = [
        state.get("StatusMessage") or state["Status"]
        for variant in pending.get("ProductionVariants", [])
        for state in variant.get("VariantStatus", [])
    ]
    return f"to {pending['EndpointConfigName']}" + (f": {', '.join(states)}" if states else "")


def report_model(model: Description) -> ModelReport:
    """The facts of a model that matter here."""
    container = model.get("PrimaryContainer", {})
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    # only our own settings: an environment may hold somebody's secrets
    settings = {
        key: value
        for key, value in container.get("Environment", {}).items()
        if key.startswith("GPTJ_") or key == "TENSOR_PARALLEL_DEGREE"
    }
    data = source.get("S3Uri") or container.get("ModelDataUrl")
    return ModelReport(model["ModelName"], container.get("Image"), data, settings)


def _component(component: Description) -> ComponentReport:
    counts = component.get("RuntimeConfig", {})
    return ComponentReport(
        name=component["InferenceComponentName"],
        status=component.get("InferenceComponentStatus", "unknown"),
        current_copies=int(counts.get("CurrentCopyCount", 0)),
        desired_copies=int(counts.get("DesiredCopyCount", 0)),
        failure=component.get("FailureReason"),
    )


def _scaling(scaling: Scaling) -> ScalingReport:
    target = scaling.target
    values = [
        policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"]
        for policy in scaling.policies
        if "TargetTrackingScalingPolicyConfiguration" in policy
    ]
    return ScalingReport(
        resource_id=target["ResourceId"],
        smallest=int(target["MinCapacity"]),
        largest=int(target["MaxCapacity"]),
        target=float(values[0]) if values else None,
        suspended=any((target.get("SuspendedState") or {}).values()),
    )


def _alarms(inventory: Inventory, endpoint: Description) -> Iterator[AlarmReport]:
    rollback = (endpoint.get("LastDeploymentConfig") or {}).get("AutoRollbackConfiguration", {})
    names = {alarm["AlarmName"] for alarm in rollback.get("Alarms", [])}
    for alarm in inventory.resources.alarms:
        yield AlarmReport(
            name=alarm["AlarmName"],
            state=alarm["StateValue"],
            reason=alarm.get("StateReason", ""),
            rolls_back=alarm["AlarmName"] in names,
        )
    ours = alarm_prefix(inventory.name)
    for name in sorted(one for one in names if not one.startswith(ours)):
        yield AlarmReport(name, "not ours", "", rolls_back=True)


def _left_over(inventory: Inventory, endpoint: Description, models: tuple[Any, ...]) -> tuple[str, ...]:
    used = {endpoint.get("EndpointConfigName"), *(model["ModelName"] for model in models)}
    configs = [f"configuration {one}" for one in inventory.resources.configs if one not in used]
    return (*configs, *(f"model {one}" for one in inventory.resources.models if one not in used))
