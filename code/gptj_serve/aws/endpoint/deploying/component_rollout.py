"""The second half of ``scripts/deploy --to-zero``: the model, as an inference component of the endpoint.

The first half is an endpoint without a model (`rollout`). The component has the endpoint's name, and keeps
it: a new image or model changes it in place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint import waiting
from gptj_serve.aws.endpoint.autoscaling import contains
from gptj_serve.aws.endpoint.deploying.components import component_config, component_request
from gptj_serve.aws.endpoint.deploying.requests import named
from gptj_serve.aws.endpoint.inventory import Description, describe_component
from gptj_serve.aws.endpoint.lookup import Resources
from gptj_serve.aws.endpoint.removal import remove
from gptj_serve.aws.endpoint.waiting import duration

POLL_S = 15.0
BUSY = ("Creating", "Updating", "Deleting")

_KEY = "InferenceComponentName"


def pool_action(config: Action, model: Action, name: str, max_instances: int) -> Action:
    """The call that makes the endpoint's configuration, without the model.

    Args:
        config: The one with the model.
        model: The call that makes that.
        name: The endpoint's.
        max_instances: Instances at most.
    """
    request = {key: value for key, value in config.request.items() if key != "EndpointConfigName"}
    pool = component_config(request, model.request, max_instances)
    return named(
        "create_endpoint_config", "EndpointConfigName", name, pool, f"{config.note}, without a model"
    )


class ComponentFailed(Exception):
    """The component did not come up, or its update was called off.

    Args:
        component: Its description, None if it is gone.
    """

    def __init__(self, component: Description | None) -> None:
        self.component = component
        self.reason = str((component or {}).get("FailureReason", "no reason given"))
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Rolling:
    """How a component that serves is changed: new copies beside old ones, some at a time.

    Attributes:
        traffic: One of `requests.TRAFFIC`: a tenth of the copies at a time with "canary", else half of them,
            which is the most that SageMaker takes.
        bake_s: How long new copies are watched before the next ones come, 0..3600.
        alarms: Names of the alarms that call it off.
        most: Copies that the instances have GPUs for, the old ones included.
    """

    traffic: str
    bake_s: int
    alarms: tuple[str, ...]
    most: int

    def config(self, name: str, num_copies: int) -> dict[str, Any]:
        """The update's ``DeploymentConfig``.

        Args:
            name: The component's.
            num_copies: Copies that there are by now, from 0.

        Raises:
            CommandError: They leave no GPU free.
        """
        if num_copies >= self.most:
            raise CommandError(
                f"{name} has {num_copies} copies, one on each of its {self.most} GPUs: an update starts "
                "new ones beside them, and finds none free",
                f"make room first: scripts/scale {name} --max {self.most - 1}",
            )
        share = 10 if self.traffic == "canary" else 2
        batch = min(max(1, num_copies // share), self.most - num_copies)
        policy = {
            "MaximumBatchSize": {"Type": "COPY_COUNT", "Value": batch},
            "WaitIntervalInSeconds": self.bake_s,
            "RollbackMaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 100},
        }
        alarms = {"AutoRollbackConfiguration": {"Alarms": [{"AlarmName": one} for one in self.alarms]}}
        return {"RollingUpdatePolicy": policy, **(alarms if self.alarms else {})}


@dataclass(frozen=True, slots=True)
class ComponentGoal:
    """The component as it shall be.

    Attributes:
        create: The call that makes it from nothing.
        rolling: How one that is there gets so.
    """

    create: Action
    rolling: Rolling

    @staticmethod
    def of(name: str, config: Action, rolling: Rolling) -> "ComponentGoal":
        """For an endpoint.

        Args:
            name: The endpoint's, and the component's.
            config: The call for a configuration with the model.
            rolling: How it is updated.
        """
        request = component_request(name, name, config.request)
        note = "the model, on one of the GPUs"
        return ComponentGoal(Action("sagemaker", "create_inference_component", request, note), rolling)

    @property
    def name(self) -> str:
        """The component's."""
        return str(self.create.request[_KEY])

    @property
    def delete(self) -> Action:
        """The call that takes it away."""
        return Action("sagemaker", "delete_inference_component", {_KEY: self.name}, "component")

    @property
    def specification(self) -> Mapping[str, Any]:
        """What runs."""
        specification: Mapping[str, Any] = self.create.request["Specification"]
        return specification

    def plan(self, found: Description | None, *, endpoint_is_new: bool) -> list[Action]:
        """The calls that lead there from what exists; it has settled.

        Args:
            found: The component, None if there is none.
            endpoint_is_new: It belongs to an endpoint that is no more.

        Raises:
            CommandError: There is no room for an update.
        """
        if found is None:
            return [self.create]
        if endpoint_is_new or found.get("InferenceComponentStatus") == "Failed":
            return [self.delete, self.create]
        if contains(found["Specification"], self.specification):
            return []
        num_copies = int(found.get("RuntimeConfig", {}).get("DesiredCopyCount", 1))
        update = {
            _KEY: self.name,
            "Specification": self.specification,
            "DeploymentConfig": self.rolling.config(self.name, num_copies),
        }
        note = "new copies beside the old ones, some at a time, then the traffic"
        return [Action("sagemaker", "update_inference_component", update, note)]


def check_pool(name: str, found: Resources, current: Mapping[str, Any] | None, config_name: str) -> None:
    """Check that an endpoint that exists can host the component.

    Raises:
        CommandError: It is of another kind, or has other instances.
    """
    endpoint = found.endpoint
    if endpoint is None or endpoint["EndpointStatus"] not in ("InService", "UpdateRollbackFailed"):
        return
    if endpoint["EndpointConfigName"] == config_name:
        return
    has_model = current is None or "ModelName" in current["ProductionVariants"][0]
    wrong = (
        "has the model itself" if has_model else "has other instances, another role, network or --max-count"
    )
    raise CommandError(
        f"{name} {wrong}: --to-zero cannot change that",
        f"give the new endpoint another name, or delete this one first: scripts/delete {name}",
    )


def settled_component(component: Description | None) -> Description | None:
    """A component as it will be when what it does by itself has ended well; None if it will be gone."""
    status = (component or {}).get("InferenceComponentStatus")
    if component is None or status == "Deleting":
        return None
    return {**component, "InferenceComponentStatus": "InService"} if status in BUSY else component


class ComponentRoller:
    """Makes the calls and waits.

    Args:
        aws: Where.
        goal: The component.
        console: Where to show what happens.
    """

    def __init__(self, aws: Aws, goal: ComponentGoal, console: Console) -> None:
        self._aws, self._goal, self._console = aws, goal, console

    def settle(self) -> Description | None:
        """Wait until the component does nothing by itself any more; its description, None without one."""
        start_s, shown = waiting.SYSTEM_CLOCK.now(), None
        while True:
            found = describe_component(self._aws.client("sagemaker"), self._goal.name)
            status = (found or {}).get("InferenceComponentStatus")
            if status not in BUSY:
                return found
            if status != shown:
                elapsed = duration(waiting.SYSTEM_CLOCK.now() - start_s)
                self._console.progress(f"{elapsed:>7}  component {self._goal.name} is {status}")
                shown = status
            waiting.SYSTEM_CLOCK.sleep(POLL_S)

    def apply(self, actions: list[Action]) -> None:
        """Make the calls.

        Raises:
            ComponentFailed: The component did not come up.
            CommandError: One that is to be deleted stays.
        """
        for action in actions:
            if action.operation.startswith("delete_"):
                remove(self._aws, self._console, action)
            else:
                self._make(action)
        found = self.settle()
        is_up = found is not None and found.get("InferenceComponentStatus") == "InService"
        if not (found and is_up and contains(found["Specification"], self._goal.specification)):
            raise ComponentFailed(found)

    def _make(self, action: Action) -> None:
        self._console.progress(f"{action.operation.replace('_', ' ')}: {self._goal.name}")
        try:
            action.apply(self._aws)
        except ClientError as error:
            # an answer may have been lost on its way, and the call made again
            if "already exist" not in error.response["Error"].get("Message", "").lower():
                raise

    def take_away(self) -> None:
        """Delete the component."""
        remove(self._aws, self._console, self._goal.delete)
