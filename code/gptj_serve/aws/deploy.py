"""``scripts/deploy``: an endpoint on SageMaker, made or changed, and waited for."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.command import run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, redact
from gptj_serve.aws.common.plan import Action, show, validate
from gptj_serve.aws.common.tags import to_dict, to_list
from gptj_serve.aws.endpoint.alarms import alarm_actions, of_component, of_variant
from gptj_serve.aws.endpoint.deploying import options
from gptj_serve.aws.endpoint.deploying.checks import (
    check_alarms,
    check_ami,
    check_fit,
    check_room,
    check_traffic,
    check_update,
    costs,
    find_type,
    warn,
)
from gptj_serve.aws.endpoint.deploying.component_rollout import (
    ComponentFailed,
    ComponentGoal,
    ComponentRoller,
    Rolling,
    check_pool,
    pool_action,
    settled_component,
)
from gptj_serve.aws.endpoint.deploying.deploy_failure import explain_component_failure, explain_failure
from gptj_serve.aws.endpoint.deploying.environment import container_environment
from gptj_serve.aws.endpoint.deploying.requests import (
    EndpointSpec,
    EndpointUpdate,
    check_name,
    config_action,
    endpoint_action,
    model_action,
    num_desired,
    update_action,
)
from gptj_serve.aws.endpoint.deploying.rollout import (
    CallRefused,
    Goal,
    Roller,
    Rollout,
    RolloutFailed,
    plan_rollout,
)
from gptj_serve.aws.endpoint.inventory import check_component, describe_component
from gptj_serve.aws.endpoint.lookup import (
    BUSY,
    TAG,
    Resources,
    check_alarms_ours,
    check_ours,
    describe_config,
    find_resources,
)
from gptj_serve.aws.endpoint.removal import remove
from gptj_serve.aws.endpoint.waiting import Waiter, duration, settled
from gptj_serve.aws.iam import policies
from gptj_serve.aws.iam.print_policies import print_iam, scope_of
from gptj_serve.aws.iam.roles import find_execution_role, our_role_arn, plan_role
from gptj_serve.aws.image.uri import ImageUri, find_image
from gptj_serve.aws.machines.instances import PRICES_AS_OF
from gptj_serve.aws.model.in_s3 import look, parse_place


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    return run(options.parser(), _handle, argv)


@dataclass(frozen=True)
class _Run:
    """What the steps of one run share."""

    arguments: argparse.Namespace
    console: Console
    aws: Aws
    wanted: EndpointSpec
    waiter: Waiter

    def find(self) -> Resources:
        clients = self.aws.client("sagemaker"), self.aws.client("cloudwatch")
        return find_resources(*clients, self.wanted.name)


def _handle(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.print_iam is not None:
        print_iam(arguments, console)
        return
    made = _begin(arguments, console)
    sagemaker = made.aws.client("sagemaker")
    found, waits = _find_settled(made)
    name = (found.endpoint or {}).get("EndpointConfigName")
    current = describe_config(sagemaker, name) if name else None
    goal = _goal(made, found.endpoint, current)
    wanted_alarms = [one.request["AlarmName"] for one in goal.alarms]
    check_alarms_ours(wanted_alarms, found.foreign_alarms, "--no-alarms does without")
    if arguments.to_zero:
        check_pool(arguments.name, found, current, goal.config_name)
        _deploy_component(made, goal, found, waits)
        return
    rollout = plan_rollout(goal, found)
    if rollout.kind == "update":
        if not arguments.no_alarms:
            check_alarms(arguments.name, found.alarms)
        check_update(made.aws, made.wanted, current)
        check_traffic(arguments.traffic, goal.update)
    if arguments.dry_run:
        _show_plan(made, rollout, waits)
    else:
        _show_end(made, rollout, goal, _roll_out(made, goal, rollout))


def _find_settled(made: _Run) -> tuple[Resources, list[str]]:
    """What there is when the endpoint does nothing by itself any more, and what has to be waited for.

    A dry run does not wait: it takes what the endpoint does now for done.
    """
    name, found = made.wanted.name, made.find()
    hint = "give the new endpoint another name"
    check_ours(made.aws.client("sagemaker"), name, found.endpoint, hint)
    status = found.endpoint["EndpointStatus"] if found.endpoint else None
    if status not in BUSY:
        return found, []
    if made.arguments.dry_run:
        return replace(found, endpoint=settled(found.endpoint)), [f"endpoint {name} is {status}"]
    made.console.progress(f"{name} is {status}: waiting for that first.")
    made.waiter.settle()
    return made.find(), []


def _begin(arguments: argparse.Namespace, console: Console) -> _Run:
    """Check all that can be known beforehand, what needs no AWS first."""
    check_name(arguments.name)
    options.check(arguments)
    is_async = bool(arguments.async_output)
    environment, settings = container_environment(arguments.env, is_async=is_async)
    instance = find_type(arguments.instance_type, arguments.volume_gb)
    check_ami(instance, arguments.inference_ami)
    if arguments.to_zero:
        check_room(instance, options.max_count(arguments))
    tags = to_dict(arguments.tag)
    parse_place(arguments.model_data)
    ImageUri.parse(arguments.image)
    aws = connect(arguments.region, arguments.profile)
    warn(instance, console, uses_all_gpus=arguments.to_zero)
    image = find_image(aws, arguments.image, console)
    data = look(aws, arguments.model_data, console)
    check_fit(instance, data, settings)
    role = find_execution_role(aws, arguments.role, console) if arguments.role else our_role_arn(aws)
    wanted = EndpointSpec(
        name=arguments.name,
        image=image,
        data=data,
        instance=instance,
        num_instances=arguments.count,
        role_arn=role,
        environment=environment,
        has_metrics=settings.front == "http",
        tags=tags,
        volume_gb=arguments.volume_gb,
        download_timeout_s=arguments.download_timeout_s,
        startup_timeout_s=arguments.startup_timeout_s,
        async_output=arguments.async_output,
        async_concurrency=arguments.async_concurrency,
        subnets=tuple(arguments.subnets),
        security_groups=tuple(arguments.security_groups),
        is_isolated=arguments.isolated,
        inference_ami=arguments.inference_ami,
    )
    return _Run(arguments, console, aws, wanted, Waiter(aws.client("sagemaker"), arguments.name, console))


def _goal(made: _Run, endpoint: Mapping[str, Any] | None, current: Mapping[str, Any] | None) -> Goal:
    arguments, wanted = made.arguments, made.wanted
    model = model_action(wanted)
    config = config_action(wanted, model.request["ModelName"])
    if arguments.to_zero:
        config = pool_action(config, model, wanted.name, options.max_count(arguments))
    alarms: tuple[Action, ...] = ()
    if not arguments.no_alarms:
        alarms = alarm_actions(
            wanted.name,
            of_component(wanted.name) if arguments.to_zero else of_variant(wanted.name),
            to_list({**wanted.tags, TAG: wanted.name}),
            options.latency_s(arguments),
            has_streams=wanted.has_streams,
        )
    # scaling may have changed the number since; another --count is an order to change it
    keeps_count = _initial_count(current) == wanted.num_instances
    update = EndpointUpdate(
        traffic=arguments.traffic,
        bake_s=arguments.bake_s,
        alarms=tuple(one.request["AlarmName"] for one in alarms),
        num_instances=num_desired(endpoint, wanted.num_instances) if keeps_count else wanted.num_instances,
        keeps_count=keeps_count,
    )
    config_name = config.request["EndpointConfigName"]
    role = plan_role(made.aws, wanted.name, _execution_policy(made)) if arguments.create_role else None
    return Goal(
        model=model,
        config=config,
        alarms=alarms,
        create=endpoint_action(wanted, config_name),
        update=update_action(wanted.name, config_name, update),
        role=role,
    )


def _initial_count(config: Mapping[str, Any] | None) -> int | None:
    return config["ProductionVariants"][0].get("InitialInstanceCount") if config else None


def _execution_policy(made: _Run) -> dict[str, Any]:
    aws = made.aws
    key = made.arguments.kms_key or made.wanted.data.kms_key
    return policies.execution_policy(scope_of(made.arguments, aws.partition, aws.region, aws.account, key))


def _deploy_component(made: _Run, goal: Goal, found: Resources, waits: list[str]) -> None:
    rollout, component = plan_rollout(goal, found), _component_goal(made, goal)
    roller = ComponentRoller(made.aws, component, made.console)
    there = describe_component(made.aws.client("sagemaker"), component.name)
    check_component(made.aws, made.wanted.name, there, "give the new endpoint another name")
    if made.arguments.dry_run:
        comes = settled_component(there)
        if there and comes is not there:
            waits.append(f"component {component.name} is {there['InferenceComponentStatus']}")
        there = comes
    else:
        there = roller.settle()
    actions = component.plan(there, endpoint_is_new=rollout.kind != "none")
    is_update = "update_inference_component" in {one.operation for one in actions}
    if is_update and not made.arguments.no_alarms:
        check_alarms(made.wanted.name, found.alarms)
    kind = rollout.kind if rollout.kind != "none" or not actions else "update"
    if made.arguments.dry_run:
        _show_plan(made, replace(rollout, kind=kind, switch=(*rollout.switch, *actions)), waits)
        return
    endpoint = _roll_out(made, goal, replace(rollout, tidy=()))
    try:
        roller.apply(actions)
    except (ComponentFailed, CommandError) as failed:
        error = failed
        if isinstance(failed, ComponentFailed):
            error = explain_component_failure(made.aws, made.wanted, failed)
        _undo_component(made, goal, roller, is_update=is_update)
        raise error from None
    for action in rollout.tidy:
        remove(made.aws, made.console, action)
    _show_end(made, replace(rollout, kind=kind), goal, endpoint)


def _component_goal(made: _Run, goal: Goal) -> ComponentGoal:
    arguments = made.arguments
    rolling = Rolling(
        traffic=arguments.traffic,
        bake_s=arguments.bake_s,
        alarms=tuple(one.request["AlarmName"] for one in goal.alarms),
        most=options.max_count(arguments) * made.wanted.instance.num_gpus,
    )
    return ComponentGoal.of(made.wanted.name, config_action(made.wanted, goal.model_name), rolling)


def _undo_component(made: _Run, goal: Goal, roller: ComponentRoller, *, is_update: bool) -> None:
    if not made.arguments.keep and not is_update:
        roller.take_away()
    # without a component an endpoint is of no use; after an update the one before it serves
    _undo(made, goal, _roller(made), {"EndpointStatus": "InService" if is_update else "Failed"})


def _roll_out(made: _Run, goal: Goal, rollout: Rollout) -> Mapping[str, Any]:
    roller = _roller(made)
    for line in costs(made.wanted, rollout.kind):
        made.console.progress(line)
    try:
        return roller.apply(rollout, goal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "Interrupted. Run the same command again: it goes on from here. An endpoint that is being made "
            f"goes on by itself, and costs; this ends it: scripts/delete {made.wanted.name}"
        ) from None
    except RolloutFailed as failed:
        error = explain_failure(made.aws, made.wanted, failed)
        _undo(made, goal, roller, failed.endpoint)
        raise error from None
    except CallRefused as refused:
        _undo(made, goal, roller, None)
        raise refused.error from None


def _roller(made: _Run) -> Roller:
    return Roller(
        made.aws,
        made.wanted.name,
        made.console,
        made.waiter,
        capacity_wait_s=made.arguments.capacity_wait * 60,
    )


def _undo(made: _Run, goal: Goal, roller: Roller, endpoint: Mapping[str, Any] | None) -> None:
    status = endpoint["EndpointStatus"] if endpoint else None
    if made.arguments.keep:
        made.console.progress("--keep: everything stays as it is; scripts/delete takes it away.")
        return
    if status == "UpdateRollbackFailed":  # instances of both versions serve: nothing is unused
        return
    made.console.progress("Taking away what was made in vain:")
    try:
        roller.roll_back(goal.role, with_endpoint=status in ("Failed", "OutOfService"))
    except (CallRefused, BotoCoreError, ClientError) as error:
        why = redact(str(error))
        made.console.progress(f"Not all could be taken away ({why}); scripts/delete does it.")


def _show_plan(made: _Run, rollout: Rollout, waits: list[str]) -> None:
    for action in rollout.actions:
        validate(action)
    notes = costs(made.wanted, rollout.kind)
    fields = {
        "plan": rollout.kind,
        "waits_for": waits,
        "actions": [action.to_dict() for action in rollout.actions],
        "notes": notes,
    }
    first = [f"# {one}: waits for that first. If it ends well, this comes then:" for one in waits]
    last = [f"# {one}" for one in notes]
    made.console.result(
        fields, "\n\n".join([*first, show(rollout.actions), *(["\n".join(last)] if last else [])])
    )


def _show_end(made: _Run, rollout: Rollout, goal: Goal, endpoint: Mapping[str, Any]) -> None:
    wanted = made.wanted
    variants = endpoint.get("ProductionVariants") or [{}]
    count = variants[0].get("CurrentInstanceCount", wanted.num_instances)
    price = wanted.instance.price_usd_hour
    fields = {
        "endpoint": wanted.name,
        "status": endpoint["EndpointStatus"],
        "change": rollout.kind,
        "config": goal.config_name,
        "model": goal.model_name,
        "image": wanted.image,
        "instance_type": wanted.instance.name,
        "instances": count,
        "usd_per_hour": price and round(price * count, 4),
        "region": made.aws.region,
        "elapsed_s": round(made.waiter.elapsed_s, 1),
    }
    made.console.result(fields, _summary(made, rollout, count))


def _summary(made: _Run, rollout: Rollout, count: int) -> str:
    wanted, price = made.wanted, made.wanted.instance.price_usd_hour
    costs = (
        "" if price is None else f", about ${price * count:.2f} an hour (us-east-1, {PRICES_AS_OF}; check)"
    )
    state = "is in service, nothing to change" if rollout.kind == "none" else "is in service"
    took = "" if rollout.kind == "none" else f" after {duration(made.waiter.elapsed_s)}"
    to_zero = made.arguments.to_zero
    how = f" --component {wanted.name}" if to_zero else " --async" if wanted.async_output else ""
    most = options.max_count(made.arguments)
    lines = (
        f"{wanted.name} {state}{took}: {count} x {wanted.instance.name}{costs}.",
        f'Ask it: scripts/invoke {wanted.name}{how} "In the beginning"',
        *([f"Let it shrink: scripts/scale {wanted.name} --max {most} --to-zero"] if to_zero else []),
        f"End it: scripts/delete {wanted.name}",
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
