"""Why an endpoint did not come up: SageMaker's reason, a way out, and the container's last words."""

from collections.abc import Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.endpoints import is_missing
from gptj_serve.aws.errors import redact

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


def log_group(name: str) -> str:
    """Where the containers of an endpoint log to."""
    return f"/aws/sagemaker/Endpoints/{name}"


def last_log_lines(aws: Aws, group: str) -> list[str]:
    """The last lines in a container's log group; a line that says why when there are none."""
    logs = aws.client("logs")
    try:
        answer = logs.describe_log_streams(
            logGroupName=group, orderBy="LastEventTime", descending=True, limit=1
        )
        streams = answer["logStreams"]
        if not streams:
            return [f"({group} is empty: the container never ran)"]
        stream = streams[0]["logStreamName"]
        events = logs.get_log_events(
            logGroupName=group, logStreamName=stream, limit=NUM_LINES, startFromHead=False
        )
        return [redact(event["message"].rstrip()) for event in events["events"]]
    except ClientError as error:
        if is_missing(error):
            return [f"(there is no log {group}: the container never ran)"]
        return [f"(its log {group} cannot be read: {error.response['Error']['Code']})"]
    except BotoCoreError as error:
        return [f"(its log {group} cannot be read: {redact(str(error))})"]
