"""``scripts/deploy``: makes or changes an endpoint on SageMaker and waits for it."""

import argparse
import sys
from dataclasses import replace

from botocore.exceptions import BotoCoreError, ClientError

from gptj_serve.aws.common.command import run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, Interrupted, redact
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.deploying import options
from gptj_serve.aws.endpoint.deploying.checks import check_alarms, check_traffic, check_update, costs
from gptj_serve.aws.endpoint.deploying.deployment import Deployment, begin, check_pool
from gptj_serve.aws.endpoint.deploying.failed_start import StartFailed, explain
from gptj_serve.aws.endpoint.deploying.goals import ComponentGoal, EndpointGoal, Rollout, plan_rollout
from gptj_serve.aws.endpoint.deploying.outcome import show_end, show_plan
from gptj_serve.aws.endpoint.deploying.roller import CallRefused
from gptj_serve.aws.endpoint.inventory import check_component
from gptj_serve.aws.endpoint.kinds import COMPONENT
from gptj_serve.aws.endpoint.lookup import (
    Description,
    Resources,
    check_alarms_ours,
    describe_component,
    describe_config,
)
from gptj_serve.aws.endpoint.removal import remove
from gptj_serve.aws.iam.print_policies import print_iam


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(options.parser(), _handle, argv)


def _handle(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.print_iam is not None:
        print_iam(arguments, console)
        return
    made = begin(arguments, console)
    found, waits = made.find_settled()
    name = (found.endpoint or {}).get("EndpointConfigName")
    current = describe_config(made.aws.client("sagemaker"), name) if name else None
    update = made.endpoint_update(found.endpoint, current)
    goal = made.endpoint_goal(update)
    check_alarms_ours(goal.alarms, found.foreign_alarms, "--no-alarms does without")
    if made.spec.is_pool:
        check_pool(goal, found.endpoint, current)
        _deploy_component(made, goal, found, waits)
        return
    rollout = plan_rollout(goal, found)
    if rollout.kind == "update":
        if goal.alarms:
            check_alarms(goal.name, found.alarms)
        check_update(made.aws, made.spec, current)
        check_traffic(update)
    if arguments.dry_run:
        show_plan(made, rollout, waits)
    else:
        show_end(made, rollout.kind, goal, _roll_out(made, goal, rollout))


def _deploy_component(made: Deployment, goal: EndpointGoal, found: Resources, waits: list[str]) -> None:
    rollout, component = plan_rollout(goal, found), made.component_goal(goal.model_name)
    there = describe_component(made.aws.client("sagemaker"), component.name)
    check_component(made.aws, goal.name, there, "give the new endpoint another name")
    if made.arguments.dry_run:
        comes = COMPONENT.settled(there)
        if there and comes is not there:
            waits.append(f"component {component.name} is {COMPONENT.status(there)}")
        there = comes
    else:
        there = made.roller.settle(component)
    actions = component.plan(there, endpoint_is_new=rollout.kind != "none")
    is_update = "update_inference_component" in {one.operation for one in actions}
    if is_update and goal.alarms:
        check_alarms(goal.name, found.alarms)
    kind = rollout.kind if rollout.kind != "none" or not actions else "update"
    if made.arguments.dry_run:
        show_plan(made, replace(rollout, kind=kind, switch=(*rollout.switch, *actions)), waits)
        return
    endpoint = _roll_out(made, goal, replace(rollout, tidy=()))
    _bring_up_component(made, goal, component, actions, is_update=is_update)
    for action in rollout.tidy:
        remove(made.aws, made.console, action)
    show_end(made, kind, goal, endpoint)


def _bring_up_component(
    made: Deployment, goal: EndpointGoal, component: ComponentGoal, actions: list[Action], *, is_update: bool
) -> None:
    try:
        made.roller.bring_up(component, actions)
    except CallRefused as refused:
        raise refused.error from None
    except (StartFailed, CommandError) as failed:
        error = explain(made.aws, made.spec, failed) if isinstance(failed, StartFailed) else failed
        if not made.arguments.keep and not is_update:
            remove(made.aws, made.console, component.delete)
        # without a component an endpoint is of no use; after a failed update the component from before serves
        _undo(made, goal, "InService" if is_update else "Failed")
        raise error from None


def _roll_out(made: Deployment, goal: EndpointGoal, rollout: Rollout) -> Description:
    for line in costs(made.spec, rollout.kind):
        made.console.progress(line)
    try:
        return made.roller.apply(rollout, goal)
    except KeyboardInterrupt:
        raise Interrupted(
            "Interrupted. Run the same command again: it goes on from here. An endpoint that is being made "
            f"goes on by itself, and costs; this ends it: scripts/delete {goal.name}"
        ) from None
    except StartFailed as failed:
        error = explain(made.aws, made.spec, failed)
        _undo(made, goal, failed.kind.status(failed.found))
        raise error from None
    except CallRefused as refused:
        _undo(made, goal, None)
        raise refused.error from None


def _undo(made: Deployment, goal: EndpointGoal, status: str | None) -> None:
    if made.arguments.keep:
        made.console.progress("--keep: everything stays as it is; scripts/delete takes it away.")
        return
    if status == "UpdateRollbackFailed":  # instances of both versions serve, so nothing is unused yet
        return
    made.console.progress("Taking away what was made in vain:")
    try:
        made.roller.roll_back(goal, with_endpoint=status in ("Failed", "OutOfService"))
    except (CallRefused, BotoCoreError, ClientError) as error:
        why = redact(str(error))
        made.console.progress(f"Not all could be taken away ({why}); scripts/delete does it.")


if __name__ == "__main__":
    sys.exit(main())
