"""Explains why an endpoint or its component did not come up: reason, remedy, the container's last lines."""

from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.errors import CommandError, redact
from gptj_serve.aws.endpoint.deploying.requests import EndpointSpec
from gptj_serve.aws.endpoint.kinds import ENDPOINT, Kind
from gptj_serve.aws.endpoint.lookup import Description, is_missing
from gptj_serve.aws.machines.fit import fitting_types
from gptj_serve.aws.machines.instances import next_ami
from gptj_serve.aws.model.in_s3 import config_or_default

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


class StartFailed(Exception):
    """An endpoint or a component did not come up, or its update was rolled back.

    Args:
        kind: Whether it is an endpoint or a component.
        found: Its description; None if it is gone.
    """

    def __init__(self, kind: Kind, found: Description | None) -> None:
        self.kind, self.found = kind, found
        self.reason = str((found or {}).get("FailureReason", "no reason given"))
        super().__init__(self.reason)


def has_no_capacity(found: Description) -> bool:
    """Whether it failed because AWS had no instance."""
    reason = str(found.get("FailureReason", ""))
    return "InsufficientInstanceCapacity" in reason or "insufficient capacity" in reason.lower()


def explain(aws: Aws, wanted: EndpointSpec, failed: StartFailed) -> CommandError:
    """The reason, the remedy and the container's last lines, which are asked for: call it before undoing."""
    kind, subject = failed.kind, f"{failed.kind.noun}{wanted.name}"
    if failed.found is None:
        return CommandError(f"{subject} was deleted by somebody else meanwhile")
    what = kind.status(failed.found)
    if what == "InService":
        serves = ", the version before it serves" if kind is ENDPOINT else ""
        what = f"the update was called off{serves}"
    message = f"{subject}: {what}: {failed.reason}"
    if kind is ENDPOINT and has_no_capacity(failed.found):
        return CommandError(message, _other_types(wanted))
    return CommandError(message, _advice(aws, wanted, failed.reason, f"{kind.logs}/{wanted.name}"))


def _advice(aws: Aws, wanted: EndpointSpec, reason: str, group: str) -> str:
    log = _read_log(aws, group)
    lines = "\n    ".join(log.lines)
    hint = next((text for sign, text in _HINTS if sign.lower() in reason.lower()), "")
    advice = [one for one in (hint, _other_host(wanted) if log.is_empty else "") if one]
    return "\n  ".join([*advice, f"{group}:\n    {lines}"])


def _other_host(wanted: EndpointSpec) -> str:
    """What to try when a container wrote no line at all: the host's driver may be too old for it."""
    if wanted.ami is None:
        return ""
    other = next_ami(wanted.instance, wanted.ami)
    ran = f"the host image was {wanted.ami}"
    return f"{ran}; the next one to try: --inference-ami {other}" if other else f"{ran}, the last one to try"


def _other_types(wanted: EndpointSpec) -> str:
    config = config_or_default(wanted.data)
    types = fitting_types(config, config.max_positions, None)
    names = [one.name for one in types if one.family != wanted.instance.family]
    advice = "AWS has no such instance free in this region now; --capacity-wait tries longer"
    return f"{advice}, and the model fits {', '.join(names)} too" if names else advice


@dataclass(frozen=True, slots=True)
class _Log:
    """The end of a container's log.

    Attributes:
        lines: The log's last lines, or one that says why there are none.
        is_empty: Whether the container wrote nothing.
    """

    lines: tuple[str, ...]
    is_empty: bool = False


def _read_log(aws: Aws, group: str) -> _Log:
    """Read the last lines of a container's log group."""
    logs = aws.client("logs")
    try:
        answer = logs.describe_log_streams(
            logGroupName=group, orderBy="LastEventTime", descending=True, limit=1
        )
        streams = answer["logStreams"]
        if not streams:
            return _Log((f"({group} is empty: the container never ran)",), is_empty=True)
        stream = streams[0]["logStreamName"]
        events = logs.get_log_events(
            logGroupName=group, logStreamName=stream, limit=NUM_LINES, startFromHead=False
        )
        lines = tuple(redact(event["message"].rstrip()) for event in events["events"])
        return _Log(lines or (f"({group} is empty)",), is_empty=not lines)
    except ClientError as error:
        if is_missing(error):
            return _Log((f"(there is no log {group}: the container never ran)",), is_empty=True)
        return _Log((f"(its log {group} cannot be read: {error.response['Error']['Code']})",))
    except BotoCoreError as error:
        return _Log((f"(its log {group} cannot be read: {redact(str(error))})",))
