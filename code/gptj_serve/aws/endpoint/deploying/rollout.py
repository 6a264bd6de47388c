"""From what exists to what is wanted: which calls that takes, and making them so that a run may end anywhere.

Every step is one call whose effect can be seen afterwards, and the plan is made from what can be seen. So
whatever an interrupted run has left, the next one goes on from there; what ends up unused is taken away.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.alarms import missing_alarms, our_alarms
from gptj_serve.aws.endpoint.deploying.failure import has_no_capacity
from gptj_serve.aws.endpoint.inventory import describe_component
from gptj_serve.aws.endpoint.lookup import (
    Resources,
    describe_config,
    describe_endpoint,
    find_resources,
    is_missing,
)
from gptj_serve.aws.endpoint.removal import is_changing
from gptj_serve.aws.endpoint.waiting import Waiter, duration
from gptj_serve.aws.iam.roles import RoleChange, removal_actions

FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 600.0
"""Between tries when AWS has no instance: doubled each time."""

ROLE_ATTEMPTS, ROLE_PAUSE_S = 10, 6.0
"""A role that was just made is not known everywhere at once."""

UPDATE_ATTEMPTS = 5
"""Scaling may change the endpoint at any time, and SageMaker updates none that is being changed."""


class RolloutFailed(Exception):
    """The endpoint did not come up, or the update was called off.

    Args:
        endpoint: Its description.
    """

    def __init__(self, endpoint: Mapping[str, Any] | None) -> None:
        self.endpoint = endpoint
        self.reason = str((endpoint or {}).get("FailureReason", "no reason given"))
        super().__init__(self.reason)


class CallRefused(Exception):
    """AWS refused one of the calls that the rollout is made of.

    Args:
        error: What it said.
    """

    def __init__(self, error: ClientError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Goal:
    """The calls that would make everything from nothing.

    Attributes:
        model, config: Make the model and the endpoint's configuration.
        alarms: Make the alarms.
        create, update: Make the endpoint, or move it to the configuration.
        role: Makes or completes the execution role; None if that is not ours.
    """

    model: Action
    config: Action
    alarms: tuple[Action, ...]
    create: Action
    update: Action
    role: RoleChange | None = None

    @property
    def name(self) -> str:
        """Of the endpoint."""
        return str(self.create.request["EndpointName"])

    @property
    def config_name(self) -> str:
        """Of the configuration that the endpoint shall have."""
        return str(self.config.request["EndpointConfigName"])

    @property
    def model_name(self) -> str:
        """Of the model that it shall have."""
        return str(self.model.request["ModelName"])


@dataclass(frozen=True, slots=True)
class Rollout:
    """What is to be done now.

    Attributes:
        kind: "create", "recreate", "update" or "none".
        prepare: Costs nothing and changes nothing that serves.
        switch: The endpoint itself; waited for after each.
        tidy: Takes away what is not used any more.
    """

    kind: str
    prepare: tuple[Action, ...]
    switch: tuple[Action, ...]
    tidy: tuple[Action, ...]

    @property
    def actions(self) -> tuple[Action, ...]:
        """All of it, in order."""
        return self.prepare + self.switch + self.tidy


def plan_rollout(goal: Goal, found: Resources) -> Rollout:
    """Compare what is wanted with what exists; the endpoint has settled."""
    prepare = list(goal.role.actions) if goal.role else []
    if goal.model_name not in found.models:
        prepare.append(goal.model)
    if goal.config_name not in found.configs:
        prepare.append(goal.config)
    prepare += missing_alarms(goal.alarms, found.alarms)
    kind, switch = _switch(goal, found.endpoint)
    alarms = [one.request["AlarmName"] for one in goal.alarms]
    tidy = tidy_actions(goal.name, found, goal.config_name, goal.model_name, alarms)
    return Rollout(kind, tuple(prepare), switch, tuple(tidy))


def _switch(goal: Goal, endpoint: Mapping[str, Any] | None) -> tuple[str, tuple[Action, ...]]:
    if endpoint is None:
        return "create", (goal.create,)
    if endpoint["EndpointStatus"] not in ("InService", "UpdateRollbackFailed"):
        return "recreate", (delete_endpoint(goal.name), goal.create)
    if endpoint["EndpointStatus"] == "InService" and endpoint["EndpointConfigName"] == goal.config_name:
        return "none", ()
    return "update", (goal.update,)


def tidy_actions(
    name: str, found: Resources, config: str | None, model: str | None, alarms: Sequence[str]
) -> list[Action]:
    """The calls that take away what belongs to an endpoint and is none of these."""
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


def delete_endpoint(name: str) -> Action:
    """The call that ends an endpoint."""
    return Action(
        "sagemaker", "delete_endpoint", {"EndpointName": name}, "it has failed, and cannot be mended"
    )


class Roller:
    """Does what a `Rollout` says.

    Args:
        aws: Where.
        name: The endpoint's.
        console: Where to show what happens.
        waiter: Watches the endpoint.
        capacity_wait_s: How long to try again while AWS has no instance.
    """

    def __init__(
        self,
        aws: Aws,
        name: str,
        console: Console,
        waiter: Waiter,
        *,
        capacity_wait_s: float,
    ) -> None:
        self._aws, self._name, self._console, self._waiter = aws, name, console, waiter
        self._capacity_wait_s = capacity_wait_s
        self._role_attempts = 1

    def apply(self, rollout: Rollout, goal: Goal) -> Mapping[str, Any]:
        """Make the calls, and wait for the endpoint.

        Returns:
            The endpoint's description, in service with the wanted configuration.

        Raises:
            RolloutFailed: It is not.
            CallRefused: AWS refused a call.
            ClientError: AWS does not say how the endpoint is; it goes on by itself.
        """
        if goal.role:  # it may have been made just now
            self._role_attempts = ROLE_ATTEMPTS
        for action in rollout.prepare:
            self._call(action)
        endpoint = self._switch(rollout.switch, goal) if rollout.switch else self._waiter.settle()
        for action in rollout.tidy:
            self._call(action)
        return endpoint or {}

    def roll_back(self, role: RoleChange | None, *, with_endpoint: bool) -> None:
        """Take away all that the endpoint does not use, and with it what was made in vain.

        Args:
            role: What was done to the execution role; None if that is not ours.
            with_endpoint: The endpoint itself never came up: it goes too.
        """
        self._waiter.settle()  # what an update is about to use looks unused until it ends
        if with_endpoint:
            self._call(delete_endpoint(self._name))
            self._waiter.settle()
        found = find_resources(self._aws.client("sagemaker"), self._aws.client("cloudwatch"), self._name)
        config = (found.endpoint or {}).get("EndpointConfigName")
        alarms = [one["AlarmName"] for one in found.alarms] if found.endpoint else []
        for action in tidy_actions(self._name, found, config, self._model_of(config), alarms):
            self._call(action)
        if role:
            # the version before may need what another policy allowed
            undo = role.undo if found.endpoint else removal_actions(self._aws, self._name, self._console)
            for action in undo:
                self._call(action)

    def _model_of(self, config: str | None) -> str | None:
        described = describe_config(self._aws.client("sagemaker"), config) if config else None
        if described is None:
            return None
        model: str | None = described["ProductionVariants"][0].get("ModelName")
        return model or self._model_of_component()

    def _model_of_component(self) -> str | None:
        found = describe_component(self._aws.client("sagemaker"), self._name)
        return found["Specification"]["ModelName"] if found else None

    def _switch(self, switch: Sequence[Action], goal: Goal) -> Mapping[str, Any]:
        give_up_s = self._waiter.clock.now() + self._capacity_wait_s
        pause_s = FIRST_PAUSE_S
        while True:
            endpoint = self._try(switch)
            if endpoint and _is_up(endpoint, goal.config_name):
                return endpoint
            if (
                not endpoint
                or not has_no_capacity(endpoint)
                or self._waiter.clock.now() + pause_s > give_up_s
            ):
                raise RolloutFailed(endpoint)
            self._console.progress(f"AWS has no such instance free now; trying again in {duration(pause_s)}.")
            if endpoint["EndpointStatus"] == "Failed":
                switch = (delete_endpoint(self._name), goal.create)
            self._waiter.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _try(self, switch: Sequence[Action]) -> Mapping[str, Any] | None:
        endpoint = None
        for action in switch:
            self._call(action)
            endpoint = self._waiter.settle()
        return endpoint

    def _call(self, action: Action) -> None:
        """Make a call; that it was made before is not an error: an answer may have been lost on its way."""
        self._console.progress(f"{action.operation.replace('_', ' ')}: {_subject(action)}")
        for attempt in itertools.count(1):
            try:
                action.apply(self._aws)
                return
            except ClientError as error:
                if _is_done(action, error) or self._is_updating_already(action, error):
                    return
                if _role_is_new(error) and attempt < self._role_attempts:
                    self._waiter.pause(ROLE_PAUSE_S)
                elif _is_busy(action, error) and attempt < UPDATE_ATTEMPTS:
                    self._waiter.settle()
                else:
                    raise CallRefused(error) from error

    def _is_updating_already(self, action: Action, error: ClientError) -> bool:
        """SageMaker says of a second call no more than that the endpoint is busy."""
        if action.operation != "update_endpoint" or error.response["Error"]["Code"] != "ValidationException":
            return False
        endpoint = describe_endpoint(self._aws.client("sagemaker"), self._name) or {}
        pending = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
        return bool(pending == action.request["EndpointConfigName"])


def _is_up(endpoint: Mapping[str, Any], config: str) -> bool:
    return bool(endpoint["EndpointStatus"] == "InService" and endpoint["EndpointConfigName"] == config)


def _is_done(action: Action, error: ClientError) -> bool:
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    if action.operation.startswith("delete_"):
        return is_missing(error)
    return code == "EntityAlreadyExists" or "cannot create already existing" in message.lower()


def _role_is_new(error: ClientError) -> bool:
    message = error.response["Error"].get("Message", "").lower()
    is_of_role = ("assume" in message and "role" in message) or "access denied" in message
    return error.operation_name in ("CreateModel", "CreateEndpointConfig") and is_of_role


def _is_busy(action: Action, error: ClientError) -> bool:
    return action.operation == "update_endpoint" and is_changing(error)


def _subject(action: Action) -> str:
    keys = ("ModelName", "EndpointConfigName", "AlarmName", "PolicyName", "RoleName", "EndpointName")
    names = [str(action.request[key]) for key in keys if key in action.request]
    return " -> ".join(reversed(names)) if names else ", ".join(action.request.get("AlarmNames", []))
