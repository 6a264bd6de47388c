"""The alarms that call an update off: server errors, and answers that take too long, whole or streamed.

SageMaker counts what happens to a stream by metrics of its own: an error after the first byte is no 5xx, and
how long a stream takes says nothing but how long its answer is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.autoscaling import contains
from gptj_serve.aws.endpoint.lookup import VARIANT, alarm_prefix

DEFAULT_LATENCY_S = 55.0
"""SageMaker gives up after 60 s."""

MAX_ERRORS = 5
"""Answers with a 5xx status in a minute that are still put up with, and streams that broke off."""

_ERRORS = {"update-server-errors": "Invocation5XXErrors", "update-stream-errors": "MidStreamErrors"}
_LATENCIES = {"update-latency": "ModelLatency", "update-first-chunk": "FirstChunkModelLatency"}
_OF_STREAMS = ("update-stream-errors", "update-first-chunk")

KINDS = (*_ERRORS, *_LATENCIES)
"""Ends of the alarms' names. Other alarms of the endpoint belong to its scaling."""

_COMPARED = (
    "Threshold",
    "Period",
    "EvaluationPeriods",
    "MetricName",
    "ExtendedStatistic",
    "Statistic",
    "Dimensions",
)


def of_variant(endpoint: str) -> dict[str, str]:
    """Dimensions of the metrics of an endpoint that has the model itself."""
    return {"EndpointName": endpoint, "VariantName": VARIANT}


def of_component(component: str) -> dict[str, str]:
    """Dimensions of the metrics of an inference component."""
    return {"InferenceComponentName": component}


def alarm_actions(
    name: str,
    dimensions: Mapping[str, str],
    tags: list[dict[str, str]],
    latency_s: float,
    *,
    has_streams: bool,
) -> tuple[Action, ...]:
    """The calls that make an endpoint's alarms.

    Args:
        name: The endpoint's.
        dimensions: `of_variant` or `of_component`.
        tags: For the alarms.
        latency_s: The slowest hundredth of the answers may take so long, and of streams their first piece;
            0 for no such alarms.
        has_streams: Clients can have streams.
    """
    kinds = _kinds(latency_s, has_streams)
    return tuple(_alarm(name, dimensions, tags, kind, latency_s) for kind in kinds)


def alarm_names(name: str, latency_s: float, *, has_streams: bool) -> tuple[str, ...]:
    """Names of the alarms that `alarm_actions` makes, in the same order."""
    return tuple(alarm_prefix(name) + kind for kind in _kinds(latency_s, has_streams))


def _kinds(latency_s: float, has_streams: bool) -> list[str]:
    kinds = KINDS if latency_s else tuple(_ERRORS)
    return [kind for kind in kinds if has_streams or kind not in _OF_STREAMS]


def our_alarms(name: str, found: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of an endpoint's alarms that call updates off."""
    names = {alarm_prefix(name) + kind for kind in KINDS}
    return [alarm for alarm in found if alarm["AlarmName"] in names]


def missing_alarms(actions: Iterable[Action], found: Iterable[Mapping[str, Any]]) -> list[Action]:
    """Those of the alarms that are not there, or differ."""
    by_name = {alarm["AlarmName"]: alarm for alarm in found}
    return [one for one in actions if not _is_there(one.request, by_name.get(one.request["AlarmName"]))]


def _is_there(wanted: Mapping[str, Any], found: Mapping[str, Any] | None) -> bool:
    compared = {key: wanted[key] for key in _COMPARED if key in wanted}
    return found is not None and contains(found, compared)


def _alarm(
    name: str, dimensions: Mapping[str, str], tags: list[dict[str, str]], kind: str, latency_s: float
) -> Action:
    is_latency = kind in _LATENCIES
    statistic = {"ExtendedStatistic": "p99"} if is_latency else {"Statistic": "Sum"}
    request = {
        "AlarmName": alarm_prefix(name) + kind,
        "AlarmDescription": f"Calls an update of {name} off; the version before it comes back",
        "Namespace": "AWS/SageMaker",
        "MetricName": _LATENCIES[kind] if is_latency else _ERRORS[kind],
        "Dimensions": [{"Name": key, "Value": value} for key, value in dimensions.items()],
        **statistic,
        "Period": 60,
        "EvaluationPeriods": 2 if is_latency else 1,
        "Threshold": latency_s * 1e6 if is_latency else float(MAX_ERRORS),
        "ComparisonOperator": "GreaterThanThreshold",
        "TreatMissingData": "notBreaching",
        "Tags": tags,
    }
    return Action("cloudwatch", "put_metric_alarm", request, "calls updates off")
