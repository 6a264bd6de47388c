"""Deletes an endpoint in an order that an interruption cannot spoil: what names the rest is deleted last.

That there is nothing to delete is no error. A call that is refused because something is changing is made
again. What takes time is waited for.
"""

import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint import autoscaling
from gptj_serve.aws.endpoint.inventory import Inventory
from gptj_serve.aws.endpoint.kinds import COMPONENT, ENDPOINT
from gptj_serve.aws.endpoint.lookup import is_missing
from gptj_serve.aws.endpoint.waiting import Waiter

POLL_S = 5.0
SAY_S = 30.0
TIMEOUT_S = 3600.0
"""SageMaker gives an endpoint an hour to start, and refuses to delete it while it changes."""

_MAX_ALARMS = 100
"""How many alarms one call deletes at most."""

_GONE = {"ObjectNotFoundException", "ResourceNotFound", "RepositoryNotFoundException", "NoSuchBucket"}
_CHANGING = {"ConcurrentUpdateException", "ResourceInUse", "ConflictException"}


def scaling_actions(inventory: Inventory) -> list[Action]:
    """The calls that end scaling, so that nothing grows again while it is being deleted."""
    actions = []
    for scaling in inventory.scaling:
        names = ("ServiceNamespace", "ResourceId", "ScalableDimension")
        key = {name: scaling.target[name] for name in names}
        for policy in scaling.policies:
            request = {"PolicyName": policy["PolicyName"], **key}
            actions.append(Action(autoscaling.SERVICE, "delete_scaling_policy", request, "scaling policy"))
        actions.append(Action(autoscaling.SERVICE, "deregister_scalable_target", key, "scaling"))
    return actions


def endpoint_actions(inventory: Inventory) -> list[Action]:
    """The calls that end the costs: components come before the endpoint, because they would outlive it."""
    actions = [
        _sagemaker("delete_inference_component", "InferenceComponentName", one["InferenceComponentName"])
        for one in inventory.components
    ]
    if inventory.resources.endpoint is not None:
        actions.append(_sagemaker("delete_endpoint", "EndpointName", inventory.name))
    return actions


def rest_actions(inventory: Inventory) -> list[Action]:
    """The calls that delete alarms, configurations and models, which are free and of no use alone."""
    alarms = [alarm["AlarmName"] for alarm in inventory.resources.alarms]
    batches = [alarms[start : start + _MAX_ALARMS] for start in range(0, len(alarms), _MAX_ALARMS)]
    actions = [Action("cloudwatch", "delete_alarms", {"AlarmNames": names}, "alarms") for names in batches]
    actions += [
        _sagemaker("delete_endpoint_config", "EndpointConfigName", name)
        for name in inventory.resources.configs
    ]
    return actions + [_sagemaker("delete_model", "ModelName", name) for name in inventory.resources.models]


def remove(aws: Aws, console: Console, action: Action) -> None:
    """Delete one thing, and wait until it is gone.

    Raises:
        CommandError: It still changes, or still exists, after `TIMEOUT_S`.
        ClientError: AWS refuses for another reason.
    """
    console.progress(f"deleting {describe(action)}")
    is_there, patience = _looking_for(aws, console, action), _Patience(console, action)
    while True:
        try:
            answer = action.apply(aws)
            check_objects(answer)
            if any(one.get("DeleteMarker") for one in answer.get("Deleted", ())):
                console.progress("  the bucket keeps versions: what was deleted is still in it, and costs")
            break
        except ClientError as error:
            if is_gone(error):
                return
            if not is_changing(error):
                raise
        if not is_there():  # it was being deleted already
            return
        patience.wait("it changes, and cannot be deleted yet")
    while is_there():
        patience.wait("still there")


class _Patience:
    """Waits up to a limit, and says now and then that it waits."""

    def __init__(self, console: Console, action: Action) -> None:
        self._console, self._what = console, describe(action)
        self._start_s = self._said_s = time.monotonic()

    def wait(self, why: str) -> None:
        now_s = time.monotonic()
        if now_s - self._start_s > TIMEOUT_S:
            minutes = TIMEOUT_S / 60
            raise CommandError(
                f"{self._what}: {why}, after {minutes:.0f} minutes", "run the same command again later"
            )
        if now_s - self._said_s >= SAY_S:
            self._console.progress(f"  {self._what}: {why}, after {now_s - self._start_s:.0f} s")
            self._said_s = now_s
        time.sleep(POLL_S)


def describe(action: Action) -> str:
    """Describe in words what an action deletes."""
    request = action.request
    if "Delete" in request:
        return f"{action.note} ({len(request['Delete']['Objects'])} objects)"
    if "AlarmNames" in request:
        return f"alarms {', '.join(request['AlarmNames'])}"
    if "PolicyName" in request and "RoleName" in request:
        return f"policy {request['PolicyName']} of the role {request['RoleName']}"
    if "ResourceId" in request:
        return (
            f"{action.note} {' of '.join(filter(None, (request.get('PolicyName'), request['ResourceId'])))}"
        )
    what = _kind(action.operation) if action.service == "sagemaker" else action.note
    return f"{what} {next(iter(request.values()))}"


def is_gone(error: ClientError) -> bool:
    """Whether an error says that there is nothing to delete."""
    details = error.response.get("Error", {})
    nothing = re.match(r"(?i)no scal\w+ (policy|target) found", str(details.get("Message", "")))
    return is_missing(error) or details.get("Code") in _GONE or nothing is not None


def is_changing(error: ClientError) -> bool:
    """Whether an error says that deleting is possible later."""
    details = error.response.get("Error", {})
    message = str(details.get("Message", ""))
    busy = re.search(r"(?i)in-progress|in progress|while it is|currently in state", message)
    return details.get("Code") in _CHANGING or busy is not None


def check_objects(answer: Mapping[str, Any]) -> None:
    """Check an answer of DeleteObjects, as S3 refuses single objects without an error.

    Raises:
        CommandError: An object was refused.
    """
    for error in answer.get("Errors", []):
        raise CommandError(
            f"s3:DeleteObject of {error.get('Key')} was refused: {error.get('Message') or error.get('Code')}"
        )


def _looking_for(aws: Aws, console: Console, action: Action) -> Callable[[], bool]:
    kinds = {"delete_endpoint": ENDPOINT, "delete_inference_component": COMPONENT}
    if action.operation not in kinds:
        return lambda: False
    (name,) = action.request.values()
    waiter = Waiter(aws.client("sagemaker"), name, console, kinds[action.operation])
    return lambda: waiter.look() is not None


def _sagemaker(operation: str, key: str, name: str) -> Action:
    return Action("sagemaker", operation, {key: name}, _kind(operation))


def _kind(operation: str) -> str:
    return operation.removeprefix("delete_").replace("_", " ").replace("config", "configuration")
