"""Makes the calls that lead to a goal and waits for their effects; an interrupted run can resume."""

import itertools
from collections.abc import Sequence

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.deploying.failed_start import StartFailed, has_no_capacity
from gptj_serve.aws.endpoint.deploying.goals import ComponentGoal, EndpointGoal, Rollout, tidy_actions
from gptj_serve.aws.endpoint.kinds import COMPONENT, ENDPOINT
from gptj_serve.aws.endpoint.lookup import (
    Description,
    describe_component,
    describe_config,
    describe_endpoint,
    find_resources,
    is_missing,
)
from gptj_serve.aws.endpoint.removal import is_changing, remove
from gptj_serve.aws.endpoint.waiting import Waiter, duration
from gptj_serve.aws.iam.roles import removal_actions

FIRST_PAUSE_S, LONGEST_PAUSE_S = 60.0, 600.0
"""Seconds between tries while AWS has no instance; they double each time."""

ROLE_ATTEMPTS, ROLE_PAUSE_S = 10, 6.0
"""A new role is not known everywhere at once, so its first use is tried several times."""

UPDATE_ATTEMPTS = 5
"""Scaling may change the endpoint at any time, and SageMaker refuses to update an endpoint that changes."""


class CallRefused(Exception):
    """AWS refused one of the calls that a rollout is made of.

    Args:
        error: What AWS said.
    """

    def __init__(self, error: ClientError) -> None:
        super().__init__(str(error))
        self.error = error


class Roller:
    """Makes the calls for an endpoint and the component on it.

    Args:
        aws: The account and region.
        name: The name of both.
        console: Where to show what happens.
        waiter: Watches the endpoint.
        capacity_wait_s: How many seconds to try again while AWS has no instance.
        has_new_role: Whether the execution role may have been made just now.
    """

    def __init__(
        self,
        aws: Aws,
        name: str,
        console: Console,
        waiter: Waiter,
        *,
        capacity_wait_s: float,
        has_new_role: bool,
    ) -> None:
        self._aws, self._name, self._console, self._waiter = aws, name, console, waiter
        self._capacity_wait_s = capacity_wait_s
        self._role_attempts = ROLE_ATTEMPTS if has_new_role else 1

    def apply(self, rollout: Rollout, goal: EndpointGoal) -> Description:
        """Make the calls of a rollout and wait for the endpoint.

        Returns:
            The endpoint's description, in service and as it is wanted.

        Raises:
            StartFailed: The endpoint did not get there.
            CallRefused: AWS refused a call.
            ClientError: AWS does not describe the endpoint, which goes on by itself.
        """
        for action in rollout.prepare:
            self.make(action)
        found = self.bring_up(goal, rollout.switch) if rollout.switch else self.settle(goal)
        for action in rollout.tidy:
            self.make(action)
        return found or {}

    def settle(self, goal: EndpointGoal | ComponentGoal) -> Description | None:
        """Wait until what a goal is about has settled; returns its description, None if it is gone."""
        if goal.kind is ENDPOINT:
            return self._waiter.settle()
        return Waiter(self._aws.client("sagemaker"), self._name, self._console, COMPONENT).settle()

    def bring_up(self, goal: EndpointGoal | ComponentGoal, switch: Sequence[Action]) -> Description:
        """Make the calls, and wait after each.

        Args:
            goal: What is waited for.
            switch: The calls; without any, what exists must already be as it is wanted.

        Returns:
            The description, in service and as it is wanted.

        Raises:
            StartFailed: It did not get there.
            CallRefused: AWS refused a call.
            ClientError: AWS does not describe what is waited for, which goes on by itself.
        """
        clock, pause_s = self._waiter.clock, FIRST_PAUSE_S
        give_up_s = clock.now() + self._capacity_wait_s
        while True:
            found = self._switch(goal, switch)
            if found is not None and goal.is_reached(found):
                return found
            if (
                not isinstance(goal, EndpointGoal)
                or not found
                or not has_no_capacity(found)
                or clock.now() + pause_s > give_up_s
            ):
                raise StartFailed(goal.kind, found)
            self._console.progress(f"AWS has no such instance free now; trying again in {duration(pause_s)}.")
            if goal.kind.status(found) == "Failed":
                switch = (goal.delete, goal.create)
            self._waiter.pause(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _switch(self, goal: EndpointGoal | ComponentGoal, switch: Sequence[Action]) -> Description | None:
        for action in switch[:-1]:
            self.make(action)
            self.settle(goal)
        if switch:
            self.make(switch[-1])
        return self.settle(goal)

    def roll_back(self, goal: EndpointGoal, *, with_endpoint: bool) -> None:
        """Delete everything that the endpoint does not use, and so what was made in vain.

        Args:
            goal: The goal that was not reached.
            with_endpoint: Also delete the endpoint, because it never came up.
        """
        self.settle(goal)  # what an update is about to use looks unused until the update ends
        if with_endpoint:
            self.make(goal.delete)
            self.settle(goal)
        found = find_resources(self._aws.client("sagemaker"), self._aws.client("cloudwatch"), self._name)
        config = (found.endpoint or {}).get("EndpointConfigName")
        alarms = [one["AlarmName"] for one in found.alarms] if found.endpoint else []
        for action in tidy_actions(self._name, found, config, self._model_of(config), alarms):
            self.make(action)
        if goal.role:
            # the previous version may need what another policy allowed
            undo = goal.role.undo if found.endpoint else removal_actions(self._aws, self._name, self._console)
            for action in undo:
                self.make(action)

    def _model_of(self, config: str | None) -> str | None:
        sagemaker = self._aws.client("sagemaker")
        described = describe_config(sagemaker, config) if config else None
        if described is None:
            return None
        if model := described["ProductionVariants"][0].get("ModelName"):
            return str(model)
        component = describe_component(sagemaker, self._name)
        return component["Specification"]["ModelName"] if component else None

    def make(self, action: Action) -> None:
        """Make a call. That it was made before is no error, because an answer may have been lost.

        Raises:
            CallRefused: AWS refused it.
            CommandError: A component that is to be deleted stays.
        """
        if action.operation == "delete_inference_component":
            remove(self._aws, self._console, action)
            return
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
        """Whether a call was refused for its own first try: SageMaker only says that the endpoint is busy."""
        if action.operation != "update_endpoint" or error.response["Error"]["Code"] != "ValidationException":
            return False
        endpoint = describe_endpoint(self._aws.client("sagemaker"), self._name) or {}
        pending = endpoint.get("PendingDeploymentSummary", {}).get("EndpointConfigName")
        return bool(pending == action.request["EndpointConfigName"])


def _is_done(action: Action, error: ClientError) -> bool:
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    if action.operation.startswith("delete_"):
        return is_missing(error)
    return code == "EntityAlreadyExists" or "already exist" in message.lower()


def _role_is_new(error: ClientError) -> bool:
    message = error.response["Error"].get("Message", "").lower()
    is_of_role = ("assume" in message and "role" in message) or "access denied" in message
    return error.operation_name in ("CreateModel", "CreateEndpointConfig") and is_of_role


def _is_busy(action: Action, error: ClientError) -> bool:
    return action.operation == "update_endpoint" and is_changing(error)


def _subject(action: Action) -> str:
    if "InferenceComponentName" in action.request:
        return str(action.request["InferenceComponentName"])
    keys = ("ModelName", "EndpointConfigName", "AlarmName", "PolicyName", "RoleName", "EndpointName")
    names = [str(action.request[key]) for key in keys if key in action.request]
    return " -> ".join(reversed(names)) if names else ", ".join(action.request.get("AlarmNames", []))
