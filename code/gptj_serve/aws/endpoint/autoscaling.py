"""How an endpoint scales: builds the calls that configure Application Auto Scaling, or end it.

The calls are only built here, not sent. What scales is a variant's instances or, on an endpoint with
inference components, a component's copies. Both follow the number of requests that are inside at once, every
10 seconds. An asynchronous endpoint follows its backlog instead.

A target per instance means nothing at zero instances, so what may shrink to zero has a second policy: an
alarm on requests that found no instance takes it to one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.lookup import alarm_prefix
from gptj_serve.aws.machines.instances import find_instance

SERVICE = "application-autoscaling"
FOLLOW_POLICY = "gptj-serve-follow-load"
WAKE_POLICY = "gptj-serve-from-zero"

POLICY_ARN = "(the PolicyARN that put_scaling_policy returned)"
"""A placeholder in an alarm's request until the policy that it sets off exists."""

WAKE_COOLDOWN_S = 60
"""There is only one step from zero, so the cooldown can be short."""

ALARM_PERIOD_S = 60
"""SageMaker sends the metrics of these alarms once a minute."""


@dataclass(frozen=True, slots=True)
class Scalable:
    """The instances or copies that grow and shrink in number.

    Attributes:
        endpoint: Name of the endpoint that it belongs to.
        what: Its unit in words: "instances" or "copies".
        resource_id: The name that Application Auto Scaling gives it.
        dimension: The number of the resource that changes.
        metric: The part of a target tracking configuration that names the metric.
        wake_metric: Metric in ``AWS/SageMaker`` that is at least 1 when there is work and nothing to do it.
        wake_dimensions: The dimensions of that metric.
    """

    endpoint: str
    what: str
    resource_id: str
    dimension: str
    metric: Mapping[str, Any]
    wake_metric: str | None = None
    wake_dimensions: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> dict[str, str]:
        """The members of every request that name it."""
        return {
            "ServiceNamespace": "sagemaker",
            "ResourceId": self.resource_id,
            "ScalableDimension": self.dimension,
        }

    @property
    def alarm(self) -> str:
        """The name of the alarm that takes it from zero."""
        return f"{alarm_prefix(self.endpoint)}from-zero"


def variant(endpoint: str, name: str) -> Scalable:
    """A variant that has the model itself. It cannot shrink to zero."""
    return Scalable(
        endpoint,
        "instances",
        f"endpoint/{endpoint}/variant/{name}",
        "sagemaker:variant:DesiredInstanceCount",
        _predefined("SageMakerVariantConcurrentRequestsPerModelHighResolution"),
    )


def component(endpoint: str, name: str) -> Scalable:
    """An inference component, whose copies SageMaker finds instances for."""
    return Scalable(
        endpoint,
        "copies",
        f"inference-component/{name}",
        "sagemaker:inference-component:DesiredCopyCount",
        _predefined("SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"),
        "NoCapacityInvocationFailures",
        {"InferenceComponentName": name},
    )


def asynchronous(endpoint: str, name: str) -> Scalable:
    """The variant of an asynchronous endpoint, which follows the requests that wait for an instance."""
    metric = {
        "MetricName": "ApproximateBacklogSizePerInstance",
        "Namespace": "AWS/SageMaker",
        "Dimensions": [{"Name": "EndpointName", "Value": endpoint}],
        "Statistic": "Average",
    }
    return Scalable(
        endpoint,
        "instances",
        f"endpoint/{endpoint}/variant/{name}",
        "sagemaker:variant:DesiredInstanceCount",
        {"CustomizedMetricSpecification": metric},
        "HasBacklogWithoutCapacity",
        {"EndpointName": endpoint},
    )


@dataclass(frozen=True, slots=True)
class ScalingSpec:
    """How something is meant to scale.

    Attributes:
        smallest: The least number, from 0.
        largest: The greatest number, from `smallest` and from 1.
        target: How many requests each should have inside at once; above 0.
        out_cooldown_s: How many seconds after growing it may grow again.
        in_cooldown_s: How many seconds after growing or shrinking it may shrink.
    """

    smallest: int
    largest: int
    target: float
    out_cooldown_s: int
    in_cooldown_s: int


@dataclass(frozen=True, slots=True)
class FoundScaling:
    """The scaling that exists, as AWS describes it.

    Attributes:
        target: The scalable target; None if there is none.
        policies: The target's policies.
        alarm: The alarm that takes it from zero; None if there is none.
    """

    target: Mapping[str, Any] | None = None
    policies: Sequence[Mapping[str, Any]] = ()
    alarm: Mapping[str, Any] | None = None

    def policy(self, name: str) -> Mapping[str, Any] | None:
        """The policy of a name; None if there is none."""
        return next((found for found in self.policies if found["PolicyName"] == name), None)


def obstacle(variant: Mapping[str, Any]) -> str | None:
    """Why a variant cannot shrink to zero; None when it can.

    Args:
        variant: A variant of the endpoint's configuration, as described or requested.
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
    """How many copies the instances of a variant have GPUs for, one each; None if that is not known.

    Args:
        variant: A variant of the endpoint's configuration, as described or requested.
    """
    instance = find_instance(variant.get("InstanceType", ""))
    most = variant.get("ManagedInstanceScaling", {}).get("MaxInstanceCount")
    return most * instance.num_gpus if most and instance and instance.num_gpus else None


def plan(it: Scalable, wanted: ScalingSpec, existing: FoundScaling, tags: Mapping[str, str]) -> list[Action]:
    """The calls that lead from what exists to what is wanted, in order; none when nothing differs.

    Args:
        it: What is scaled.
        wanted: How it is meant to scale.
        existing: The scaling that exists.
        tags: Tags for the target and the alarm.
    """
    actions = _register(it, wanted, existing, tags)
    actions += _put_policy(it, FOLLOW_POLICY, _follow(it, wanted), existing)
    if wanted.smallest:
        return actions + _forget_wake(it, existing)
    actions += _put_policy(it, WAKE_POLICY, WAKE, existing)
    return actions + _put_alarm(it, existing, tags)


def removal(it: Scalable, existing: FoundScaling) -> list[Action]:
    """The calls that end all its scaling, in order; AWS deletes its own alarms with the policies."""
    actions = [_delete_policy(it, found["PolicyName"]) for found in existing.policies]
    if existing.target:
        note = f"{it.what} of {it.resource_id} stay as many as there are"
        actions.append(Action(SERVICE, "deregister_scalable_target", it.key, note))
    return actions + _delete_alarm(it, existing)


WAKE = {
    "PolicyType": "StepScaling",
    "StepScalingPolicyConfiguration": {
        "AdjustmentType": "ChangeInCapacity",
        "MetricAggregationType": "Maximum",
        "Cooldown": WAKE_COOLDOWN_S,
        "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
    },
}


def _follow(it: Scalable, wanted: ScalingSpec) -> dict[str, Any]:
    configuration = {
        "TargetValue": wanted.target,
        **it.metric,
        "ScaleOutCooldown": wanted.out_cooldown_s,
        "ScaleInCooldown": wanted.in_cooldown_s,
    }
    return {
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": configuration,
    }


def _register(
    it: Scalable, wanted: ScalingSpec, existing: FoundScaling, tags: Mapping[str, str]
) -> list[Action]:
    limits = {"MinCapacity": wanted.smallest, "MaxCapacity": wanted.largest}
    if existing.target and contains(existing.target, limits):
        return []
    # AWS refuses tags for a target that exists already
    request = {**it.key, **limits, **({} if existing.target else {"Tags": dict(tags)})}
    note = f"{wanted.smallest} to {wanted.largest} {it.what}"
    return [Action(SERVICE, "register_scalable_target", request, note)]


def _put_policy(it: Scalable, name: str, policy: Mapping[str, Any], existing: FoundScaling) -> list[Action]:
    found = existing.policy(name)
    if found and contains(found, policy):
        return []
    notes = {FOLLOW_POLICY: "follow the load", WAKE_POLICY: "one step, from zero to one"}
    return [Action(SERVICE, "put_scaling_policy", {"PolicyName": name, **it.key, **policy}, notes[name])]


def _put_alarm(it: Scalable, existing: FoundScaling, tags: Mapping[str, str]) -> list[Action]:
    found = existing.policy(WAKE_POLICY)
    request = {
        "AlarmName": it.alarm,
        "AlarmDescription": f"{it.endpoint} was asked while it had no {it.what}",
        "AlarmActions": [found["PolicyARN"] if found else POLICY_ARN],
        "Namespace": "AWS/SageMaker",
        "MetricName": it.wake_metric,
        "Dimensions": [{"Name": name, "Value": value} for name, value in it.wake_dimensions.items()],
        "Statistic": "Sum",
        "Period": ALARM_PERIOD_S,
        "EvaluationPeriods": 1,
        "DatapointsToAlarm": 1,
        "Threshold": 1.0,
        "ComparisonOperator": "GreaterThanOrEqualToThreshold",
        "TreatMissingData": "missing",
    }
    if existing.alarm and contains(existing.alarm, request):
        return []
    request["Tags"] = [{"Key": key, "Value": value} for key, value in tags.items()]
    return [Action("cloudwatch", "put_metric_alarm", request, "sets off the step from zero")]


def _forget_wake(it: Scalable, existing: FoundScaling) -> list[Action]:
    policy = [_delete_policy(it, WAKE_POLICY)] if existing.policy(WAKE_POLICY) else []
    return policy + _delete_alarm(it, existing)


def _delete_policy(it: Scalable, name: str) -> Action:
    return Action(SERVICE, "delete_scaling_policy", {"PolicyName": name, **it.key}, f"of {it.resource_id}")


def _delete_alarm(it: Scalable, existing: FoundScaling) -> list[Action]:
    if not existing.alarm:
        return []
    return [Action("cloudwatch", "delete_alarms", {"AlarmNames": [it.alarm]}, "the step from zero")]


def contains(found: Any, asked: Any) -> bool:
    """Whether an answer has all that a request asks for; AWS adds defaults of its own."""
    if isinstance(asked, Mapping):
        return isinstance(found, Mapping) and all(contains(found.get(key), asked[key]) for key in asked)
    if isinstance(asked, list):
        return isinstance(found, list) and len(found) == len(asked) and all(map(contains, found, asked))
    return bool(found == asked)


def _predefined(metric: str) -> dict[str, Any]:
    return {"PredefinedMetricSpecification": {"PredefinedMetricType": metric}}
