"""An endpoint and its component as they are wanted, and the calls that lead there from what exists.

Every step is one call whose effect can be seen afterwards, and the plan is made from what can be seen. So a
run can resume from whatever an interrupted one has left; what is not used in the end is deleted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.alarms import missing_alarms, our_alarms
from gptj_serve.aws.endpoint.autoscaling import contains
from gptj_serve.aws.endpoint.kinds import COMPONENT, ENDPOINT, Kind
from gptj_serve.aws.endpoint.lookup import Description, Resources
from gptj_serve.aws.iam.roles import RoleChange


@dataclass(frozen=True, slots=True)
class EndpointGoal:
    """The endpoint as it is wanted, and the calls that would make everything from nothing.

    Attributes:
        name: The endpoint's name.
        model_name, config_name: The names of its model and its configuration.
        model, config: The calls that make these two.
        create, update: The calls that make the endpoint, or move it to the configuration.
        alarms: The calls that make the alarms, by the alarms' names.
        role: The calls that make or complete the execution role; None if that is not ours.
    """

    name: str
    model_name: str
    config_name: str
    model: Action
    config: Action
    create: Action
    update: Action
    alarms: Mapping[str, Action] = field(default_factory=dict)
    role: RoleChange | None = None
    kind: Kind = ENDPOINT

    @property
    def delete(self) -> Action:
        """The call that deletes an endpoint that failed."""
        note = "it has failed, and cannot be mended"
        return Action("sagemaker", "delete_endpoint", {"EndpointName": self.name}, note)

    def is_reached(self, found: Description) -> bool:
        """Whether the endpoint that was found is as it is wanted."""
        status = found["EndpointStatus"]
        return bool(status == "InService" and found["EndpointConfigName"] == self.config_name)


@dataclass(frozen=True, slots=True)
class Rollout:
    """The calls that are to be made now.

    Attributes:
        kind: "create", "recreate", "update" or "none".
        prepare: Calls that cost nothing and change nothing that serves.
        switch: Calls that change the endpoint itself; it is waited for after each.
        tidy: Calls that delete what is not used any more.
    """

    kind: str
    prepare: tuple[Action, ...]
    switch: tuple[Action, ...]
    tidy: tuple[Action, ...]

    @property
    def actions(self) -> tuple[Action, ...]:
        """All calls, in order."""
        return self.prepare + self.switch + self.tidy


def plan_rollout(goal: EndpointGoal, found: Resources) -> Rollout:
    """Compare what is wanted with what exists once the endpoint has settled."""
    prepare = list(goal.role.actions) if goal.role else []
    if goal.model_name not in found.models:
        prepare.append(goal.model)
    if goal.config_name not in found.configs:
        prepare.append(goal.config)
    prepare += missing_alarms(goal.alarms.values(), found.alarms)
    kind, switch = _switch(goal, found.endpoint)
    tidy = tidy_actions(goal.name, found, goal.config_name, goal.model_name, tuple(goal.alarms))
    return Rollout(kind, tuple(prepare), switch, tuple(tidy))


def _switch(goal: EndpointGoal, endpoint: Description | None) -> tuple[str, tuple[Action, ...]]:
    if endpoint is None:
        return "create", (goal.create,)
    if endpoint["EndpointStatus"] not in ("InService", "UpdateRollbackFailed"):
        return "recreate", (goal.delete, goal.create)
    return ("none", ()) if goal.is_reached(endpoint) else ("update", (goal.update,))


def tidy_actions(
    name: str, found: Resources, config: str | None, model: str | None, alarms: Sequence[str]
) -> list[Action]:
    """The calls that delete what belongs to an endpoint and is none of these."""
    why = "not used any more"
    actions = [
        Action("sagemaker", "delete_endpoint_config", {"EndpointConfigName": one}, why)
        for one in found.configs
        if one != config
    ]
    actions += [
        Action("sagemaker", "delete_model", {"ModelName": one}, why) for one in found.models if one != model
    ]
    ours = [one["AlarmName"] for one in our_alarms(name, found.alarms)]
    if unused := [one for one in ours if one not in alarms]:
        actions.append(Action("cloudwatch", "delete_alarms", {"AlarmNames": unused}, why))
    return actions


@dataclass(frozen=True, slots=True)
class ComponentUpdate:
    """How a component that serves is changed: new copies come up beside old ones, some at a time.

    Attributes:
        traffic: One of `requests.TRAFFIC`: a tenth of the copies at a time with "canary", else half of them,
            which is the most that SageMaker takes.
        bake_s: How long new copies are watched before the next ones come, 0..3600.
        alarms: Names of the alarms that roll it back.
        most: How many copies the instances have GPUs for, the old ones included.
    """

    traffic: str
    bake_s: int
    alarms: tuple[str, ...]
    most: int

    def config(self, name: str, num_copies: int) -> dict[str, Any]:
        """The update's ``DeploymentConfig``.

        Args:
            name: The component's name.
            num_copies: How many copies there are by now, from 0.

        Raises:
            CommandError: The copies leave no GPU free.
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
    """The component as it is wanted.

    Attributes:
        name: The name of the endpoint and of the component.
        specification: What the component runs.
        create: The call that makes it from nothing.
        update: How an existing component is changed.
    """

    name: str
    specification: Mapping[str, Any]
    create: Action
    update: ComponentUpdate
    kind: Kind = COMPONENT

    @property
    def delete(self) -> Action:
        """The call that deletes it."""
        request = {"InferenceComponentName": self.name}
        return Action("sagemaker", "delete_inference_component", request, "component")

    def is_reached(self, found: Description) -> bool:
        """Whether the component that was found is as it is wanted."""
        return COMPONENT.status(found) == "InService" and self._runs_in(found)

    def _runs_in(self, found: Description) -> bool:
        return contains(found["Specification"], self.specification)

    def plan(self, found: Description | None, *, endpoint_is_new: bool) -> list[Action]:
        """The calls that lead there from what exists, once the component has settled.

        Args:
            found: The component; None if there is none.
            endpoint_is_new: The component belongs to an endpoint that does not exist any more.

        Raises:
            CommandError: There is no room for an update.
        """
        if found is None:
            return [self.create]
        if endpoint_is_new or COMPONENT.status(found) == "Failed":
            return [self.delete, self.create]
        if self._runs_in(found):
            return []
        num_copies = int(found.get("RuntimeConfig", {}).get("DesiredCopyCount", 1))
        request = {
            "InferenceComponentName": self.name,
            "Specification": self.specification,
            "DeploymentConfig": self.update.config(self.name, num_copies),
        }
        note = "new copies beside the old ones, some at a time, then the traffic"
        return [Action("sagemaker", "update_inference_component", request, note)]
