"""The calls that make an endpoint scale: botocore takes them, and they lead to what is wanted."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gptj_serve.aws.common.plan import Action, validate
from gptj_serve.aws.endpoint import autoscaling
from gptj_serve.aws.endpoint.autoscaling import FoundScaling, Scalable, ScalingSpec, contains, plan, removal

VARIANT = autoscaling.variant("gpt-j", "main")
COMPONENT = autoscaling.component("gpt-j", "gpt-j")
ASYNCHRONOUS = autoscaling.asynchronous("gpt-j", "main")
FROM_ZERO = ScalingSpec(0, 4, 6.0, 60, 600)
FROM_ONE = ScalingSpec(1, 4, 6.0, 60, 600)
EACH = pytest.mark.parametrize(
    ("it", "wanted"),
    [
        (VARIANT, FROM_ONE),
        (COMPONENT, FROM_ONE),
        (COMPONENT, FROM_ZERO),
        (ASYNCHRONOUS, FROM_ONE),
        (ASYNCHRONOUS, FROM_ZERO),
    ],
    ids=["variant", "component", "component from 0", "async", "async from 0"],
)
TAGS = {"gptj-serve:endpoint": "gpt-j"}


def carry_out(actions: Sequence[Action], before: FoundScaling) -> FoundScaling:
    """What AWS describes after some calls, with defaults of its own."""
    target, policies, alarm = before.target, {one["PolicyName"]: one for one in before.policies}, before.alarm
    for action in actions:
        validate(action)
        request: dict[str, Any] = {key: action.request[key] for key in action.request if key != "Tags"}
        match action.operation:
            case "register_scalable_target":
                target = {**request, "RoleARN": "arn:aws:iam::1:role/x", "SuspendedState": {}}
            case "put_scaling_policy":
                arn = f"arn:policy/{request['PolicyName']}"
                policies[request["PolicyName"]] = {**request, "PolicyARN": arn, "Alarms": []}
            case "put_metric_alarm":
                actions_of_it = [policies[autoscaling.WAKE_POLICY]["PolicyARN"]]
                alarm = {**request, "AlarmActions": actions_of_it, "StateValue": "OK"}
            case "delete_scaling_policy":
                del policies[request["PolicyName"]]
            case "delete_alarms":
                alarm = None
            case "deregister_scalable_target":
                target = None
    return FoundScaling(target, tuple(policies.values()), alarm)


@EACH
def test_what_was_done_is_not_done_again(it: Scalable, wanted: ScalingSpec) -> None:
    actions = plan(it, wanted, FoundScaling(), TAGS)
    assert actions
    assert plan(it, wanted, carry_out(actions, FoundScaling()), TAGS) == []


@EACH
def test_a_plan_that_was_cut_short_is_finished(it: Scalable, wanted: ScalingSpec) -> None:
    actions = plan(it, wanted, FoundScaling(), TAGS)
    whole = carry_out(actions, FoundScaling())
    for done in range(len(actions)):
        part = carry_out(actions[:done], FoundScaling())
        rest = plan(it, wanted, part, TAGS)
        assert [one.operation for one in rest] == [one.operation for one in actions[done:]]
        assert carry_out(rest, part) == whole


@pytest.mark.parametrize("it", [COMPONENT, ASYNCHRONOUS], ids=["component", "async"])
def test_what_may_shrink_to_zero_is_woken(it: Scalable) -> None:
    alarm = carry_out(plan(it, FROM_ZERO, FoundScaling(), TAGS), FoundScaling()).alarm
    assert alarm is not None
    assert alarm["AlarmActions"] == [f"arn:policy/{autoscaling.WAKE_POLICY}"]
    assert alarm["AlarmName"] == "gptj-serve/gpt-j/from-zero"


def test_the_alarm_watches_what_could_not_be_served() -> None:
    (alarm,) = [
        one.request for one in plan(COMPONENT, FROM_ZERO, FoundScaling(), TAGS) if "AlarmName" in one.request
    ]
    assert (alarm["MetricName"], alarm["Threshold"]) == ("NoCapacityInvocationFailures", 1.0)
    assert alarm["Dimensions"] == [{"Name": "InferenceComponentName", "Value": "gpt-j"}]
    assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"


def test_from_one_on_nothing_needs_to_be_woken() -> None:
    before = carry_out(plan(COMPONENT, FROM_ZERO, FoundScaling(), TAGS), FoundScaling())
    actions = plan(COMPONENT, FROM_ONE, before, TAGS)
    operations = ["register_scalable_target", "delete_scaling_policy", "delete_alarms"]
    assert [one.operation for one in actions] == operations
    after = carry_out(actions, before)
    assert [one["PolicyName"] for one in after.policies] == [autoscaling.FOLLOW_POLICY]


@pytest.mark.parametrize(
    ("wanted", "operation"),
    [
        (ScalingSpec(1, 8, 6.0, 60, 600), "register_scalable_target"),
        (ScalingSpec(2, 4, 6.0, 60, 600), "register_scalable_target"),
        (ScalingSpec(1, 4, 7.5, 60, 600), "put_scaling_policy"),
        (ScalingSpec(1, 4, 6.0, 61, 600), "put_scaling_policy"),
        (ScalingSpec(1, 4, 6.0, 60, 601), "put_scaling_policy"),
    ],
)
def test_only_what_differs_is_changed(wanted: ScalingSpec, operation: str) -> None:
    before = carry_out(plan(VARIANT, FROM_ONE, FoundScaling(), TAGS), FoundScaling())
    assert [one.operation for one in plan(VARIANT, wanted, before, TAGS)] == [operation]


def test_tags_are_sent_with_a_new_target_only() -> None:
    first = plan(VARIANT, FROM_ONE, FoundScaling(), TAGS)
    assert first[0].request["Tags"] == TAGS
    second = plan(VARIANT, ScalingSpec(1, 9, 6.0, 60, 600), carry_out(first, FoundScaling()), TAGS)
    assert "Tags" not in second[0].request


@EACH
def test_nothing_is_left_when_scaling_ends(it: Scalable, wanted: ScalingSpec) -> None:
    there = carry_out(plan(it, wanted, FoundScaling(), TAGS), FoundScaling())
    assert carry_out(removal(it, there), there) == FoundScaling()
    assert removal(it, FoundScaling()) == []


@pytest.mark.parametrize(
    ("make", "metric"),
    [
        (autoscaling.variant, "SageMakerVariantConcurrentRequestsPerModelHighResolution"),
        (autoscaling.component, "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"),
    ],
)
def test_it_follows_the_requests_inside_by_the_high_resolution_metric(
    make: Callable[[str, str], Scalable], metric: str
) -> None:
    (policy,) = [
        one.request
        for one in plan(make("a", "b"), FROM_ONE, FoundScaling(), TAGS)
        if "PolicyName" in one.request
    ]
    configuration = policy["TargetTrackingScalingPolicyConfiguration"]
    assert configuration["PredefinedMetricSpecification"] == {"PredefinedMetricType": metric}
    assert metric in _known_metrics()


def _known_metrics() -> list[str]:
    from botocore.session import get_session

    model = get_session().get_service_model(autoscaling.SERVICE)
    known: list[str] = model.shape_for("MetricType").enum
    return known


@pytest.mark.parametrize(
    ("found", "asked", "holds"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}}, True),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, True),
        ({"a": [{"b": 1}, {"b": 2}]}, {"a": [{"b": 1}]}, False),
        ({"a": None}, {"a": {"b": 1}}, False),
    ],
)
def test_an_answer_may_say_more(found: Any, asked: Any, holds: bool) -> None:
    assert contains(found, asked) is holds
