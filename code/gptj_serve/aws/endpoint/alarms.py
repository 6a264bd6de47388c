"""The alarms that roll an update back: server errors, and answers that take too long, whole or streamed.

SageMaker has metrics of its own for streams: an error after the first byte is no 5xx, and how long a stream
takes says nothing but how long its answer is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.autoscaling import contains
from gptj_serve.aws.endpoint.lookup import VARIANT, alarm_prefix

DEFAULT_LATENCY_S = 55.0
"""It is below the 60 s after which SageMaker gives up."""

MAX_ERRORS = 5
"""How many answers with a 5xx status, or broken streams, an update may have in a minute."""

_ERRORS = {"update-server-errors": "Invocation5XXErrors", "update-stream-errors": "MidStreamErrors"}
_LATENCIES = {"update-latency": "ModelLatency", "update-first-chunk": "FirstChunkModelLatency"}
_OF_STREAMS = ("update-stream-errors", "update-first-chunk")

KINDS = (*_ERRORS, *_LATENCIES)
"""How these alarms' names end. Other alarms of the endpoint belong to its scaling."""

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
    """The metrics' dimensions for an endpoint that has the model itself."""
    return {"EndpointName": endpoint, "VariantName": VARIANT}


def of_component(component: str) -> dict[str, str]:
    """The metrics' dimensions for an inference component."""
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
        name: The endpoint's name.
        dimensions: What `of_variant` or `of_component` gives.
        tags: Tags for the alarms.
        latency_s: How many seconds the slowest hundredth of the answers, or of the streams' first pieces, may
            take; 0 for no such alarms.
        has_streams: Whether clients can have streams.
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
    """The alarms of an endpoint that roll updates back."""
    names = {alarm_prefix(name) + kind for kind in KINDS}
    return [alarm for alarm in found if alarm["AlarmName"] in names]


def missing_alarms(actions: Iterable[Action], found: Iterable[Mapping[str, Any]]) -> list[Action]:
    """The alarms that do not exist or differ from what is wanted."""
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
