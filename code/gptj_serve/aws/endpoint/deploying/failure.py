"""Why an endpoint did not come up: SageMaker's reason, a way out, and the container's last words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.errors import redact
from gptj_serve.aws.endpoint.lookup import is_missing

NUM_LINES = 20

_HINTS = (
    ("InsufficientInstanceCapacity", "AWS has no such instance free in this region now"),
    (
        "CannotStartContainerError",
        "the container never ran: an image for another driver or processor, or damaged",
    ),
    (
        "ping health check",
        "the container's log says why it was not ready in time; --startup-timeout-s gives it more",
    ),
    ("model data", "may the execution role read the model's files, and are they in this region?"),
    ("ecr", "may the execution role pull the image, and is it in this region?"),
)


def has_no_capacity(endpoint: Mapping[str, Any]) -> bool:
    """Whether an endpoint failed because AWS had no instance."""
    reason = str(endpoint.get("FailureReason", ""))
    return "InsufficientInstanceCapacity" in reason or "insufficient capacity" in reason.lower()


def hint(reason: str) -> str:
    """What to do about a failure; empty if there is nothing to say."""
    found = (text for sign, text in _HINTS if sign.lower() in reason.lower())
    return next(found, "")


def log_group(name: str, kind: str = "Endpoints") -> str:
    """Where the containers of an endpoint log to, or with "InferenceComponents" those of a component."""
    return f"/aws/sagemaker/{kind}/{name}"


@dataclass(frozen=True, slots=True)
class Log:
    """The end of a container's log.

    Attributes:
        lines: Its last lines, or one that says why there are none.
        is_empty: It wrote nothing.
    """

    lines: tuple[str, ...]
    is_empty: bool = False


def read_log(aws: Aws, group: str) -> Log:
    """The last lines in a container's log group."""
    logs = aws.client("logs")
    try:
        answer = logs.describe_log_streams(
            logGroupName=group, orderBy="LastEventTime", descending=True, limit=1
        )
        streams = answer["logStreams"]
        if not streams:
            return Log((f"({group} is empty: the container never ran)",), is_empty=True)
        stream = streams[0]["logStreamName"]
        events = logs.get_log_events(
            logGroupName=group, logStreamName=stream, limit=NUM_LINES, startFromHead=False
        )
        lines = tuple(redact(event["message"].rstrip()) for event in events["events"])
        return Log(lines or (f"({group} is empty)",), is_empty=not lines)
    except ClientError as error:
        if is_missing(error):
            return Log((f"(there is no log {group}: the container never ran)",), is_empty=True)
        return Log((f"(its log {group} cannot be read: {error.response['Error']['Code']})",))
    except BotoCoreError as error:
        return Log((f"(its log {group} cannot be read: {redact(str(error))})",))
