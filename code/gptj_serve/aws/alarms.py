"""The alarms that call an update off: server errors, and answers that take too long."""

from collections.abc import Iterable, Mapping
from typing import Any

from gptj_serve.aws.endpoints import VARIANT, alarm_prefix
from gptj_serve.aws.plan import Action

DEFAULT_LATENCY_S = 55.0
"""SageMaker gives up after 60 s."""

MAX_SERVER_ERRORS = 5
"""Answers with a 5xx status in a minute that are still put up with."""

KINDS = ("update-server-errors", "update-latency")
"""Ends of the alarms' names. Other alarms of the endpoint belong to its scaling."""

_COMPARED = ("Threshold", "Period", "EvaluationPeriods", "MetricName", "ExtendedStatistic", "Statistic")


def alarm_actions(name: str, tags: list[dict[str, str]], latency_s: float) -> tuple[Action, ...]:
    """The calls that make an endpoint's alarms.

    Args:
        name: The endpoint's.
        tags: For the alarms.
        latency_s: The slowest hundredth of the answers may take so long; 0 for no such alarm.
    """
    errors = _alarm(name, tags, KINDS[0], "Invocation5XXErrors", MAX_SERVER_ERRORS, Statistic="Sum")
    if not latency_s:
        return (errors,)
    threshold_us = latency_s * 1e6
    return errors, _alarm(name, tags, KINDS[1], "ModelLatency", threshold_us, ExtendedStatistic="p99")


def our_alarms(name: str, found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of an endpoint's alarms that call updates off."""
    names = {alarm_prefix(name) + kind for kind in KINDS}
    return [alarm for alarm in found if alarm["AlarmName"] in names]


def missing_alarms(actions: Iterable[Action], found: Iterable[Mapping[str, Any]]) -> list[Action]:
    """Those of the alarms that are not there, or differ."""
    by_name = {alarm["AlarmName"]: alarm for alarm in found}
    return [one for one in actions if not _is_there(one.request, by_name.get(one.request["AlarmName"]))]


def _is_there(wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> bool:
    return found is not None and all(wanted.get(key) == found.get(key) for key in _COMPARED)


def _alarm(
    name: str, tags: list[dict[str, str]], kind: str, metric: str, threshold: float, **statistic: str
) -> Action:
    dimensions = {"EndpointName": name, "VariantName": VARIANT}
    request = {
        "AlarmName": alarm_prefix(name) + kind,
        "AlarmDescription": f"Calls an update of {name} off; the version before it comes back",
        "Namespace": "AWS/SageMaker",
        "MetricName": metric,
        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
        **statistic,
        "Period": 60,
        "EvaluationPeriods": 2 if metric == "ModelLatency" else 1,
        "Threshold": float(threshold),
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
        "Tags": tags,
    }
    return Action("cloudwatch", "put_metric_alarm", request, "calls updates off")
