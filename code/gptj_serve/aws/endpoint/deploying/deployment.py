"""One run of ``scripts/deploy``: turns its options into an `EndpointSpec`, and that into goals."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.tags import to_dict
from gptj_serve.aws.endpoint.alarms import alarm_actions, alarm_names, of_component, of_variant
from gptj_serve.aws.endpoint.deploying import options, requests
from gptj_serve.aws.endpoint.deploying.checks import check_ami, check_fit, check_room, find_type, warn
from gptj_serve.aws.endpoint.deploying.environment import container_environment
from gptj_serve.aws.endpoint.deploying.goals import ComponentGoal, ComponentUpdate, EndpointGoal
from gptj_serve.aws.endpoint.deploying.requests import EndpointSpec, EndpointUpdate
from gptj_serve.aws.endpoint.deploying.roller import Roller
from gptj_serve.aws.endpoint.kinds import ENDPOINT
from gptj_serve.aws.endpoint.lookup import Description, Resources, check_ours, find_resources
from gptj_serve.aws.endpoint.waiting import Waiter
from gptj_serve.aws.iam.policies import execution_policy
from gptj_serve.aws.iam.print_policies import scope_of
from gptj_serve.aws.iam.roles import RoleChange, find_execution_role, our_role_arn, plan_role
from gptj_serve.aws.image.uri import ImageUri, find_image
from gptj_serve.aws.model.in_s3 import look, parse_place


@dataclass(frozen=True)
class Deployment:
    """What the steps of one run share.

    Attributes:
        arguments: The parsed command line.
        console: Where to show what happens.
        aws: The account and region.
        spec: The endpoint as its user wants it.
        waiter: Watches the endpoint from the beginning of the run on.
    """

    arguments: argparse.Namespace
    console: Console
    aws: Aws
    spec: EndpointSpec
    waiter: Waiter

    @property
    def roller(self) -> Roller:
        """The roller that makes the calls."""
        return Roller(
            self.aws,
            self.spec.name,
            self.console,
            self.waiter,
            capacity_wait_s=self.arguments.capacity_wait * 60,
            has_new_role=self.arguments.create_role,
        )

    @property
    def alarms(self) -> tuple[str, ...]:
        """The names of the alarms that roll updates back."""
        if self.arguments.no_alarms:
            return ()
        latency_s = options.latency_s(self.arguments)
        return alarm_names(self.spec.name, latency_s, has_streams=self.spec.has_streams)

    def find_settled(self) -> tuple[Resources, list[str]]:
        """Wait until the endpoint has settled; returns what exists then.

        A dry run does not wait: it assumes that what the endpoint does now ends well.

        Raises:
            CommandError: Somebody else made the endpoint.
        """
        name, found = self.spec.name, self._find()
        check_ours(self.aws.client("sagemaker"), name, found.endpoint, "give the new endpoint another name")
        status = ENDPOINT.status(found.endpoint)
        if status not in ENDPOINT.busy:
            return found, []
        if self.arguments.dry_run:
            comes = ENDPOINT.settled(found.endpoint)
            return replace(found, endpoint=comes), [f"endpoint {name} is {status}"]
        self.console.progress(f"{name} is {status}: waiting for that first.")
        self.waiter.settle()
        return self._find(), []

    def _find(self) -> Resources:
        clients = self.aws.client("sagemaker"), self.aws.client("cloudwatch")
        return find_resources(*clients, self.spec.name)

    def endpoint_update(self, endpoint: Description | None, current: Description | None) -> EndpointUpdate:
        """How the endpoint is changed.

        Args:
            endpoint: The endpoint as it is; None if there is none.
            current: The endpoint's present configuration; None if there is none.
        """
        spec = self.spec
        # scaling may have changed the number meanwhile, but another --count is an order to change it
        keeps_count = _initial_count(current) == spec.num_instances
        num_instances = requests.num_desired(endpoint, spec.num_instances)
        return EndpointUpdate(
            traffic=self.arguments.traffic,
            bake_s=self.arguments.bake_s,
            alarms=self.alarms,
            num_instances=num_instances if keeps_count else spec.num_instances,
            keeps_count=keeps_count,
        )

    def endpoint_goal(self, update: EndpointUpdate) -> EndpointGoal:
        """The endpoint as it is wanted."""
        spec = self.spec
        model = requests.model_action(spec)
        model_name = model.request["ModelName"]  # the name ends with a hash of the rest of the request
        config = requests.config_action(spec, model_name)
        config_name = config.request["EndpointConfigName"]
        dimensions = of_component(spec.name) if spec.is_pool else of_variant(spec.name)
        latency_s = options.latency_s(self.arguments)
        alarms = alarm_actions(spec.name, dimensions, spec.all_tags, latency_s, has_streams=spec.has_streams)
        return EndpointGoal(
            name=spec.name,
            model_name=model_name,
            config_name=config_name,
            model=model,
            config=config,
            create=requests.endpoint_action(spec, config_name),
            update=requests.update_action(spec.name, config_name, update),
            alarms=dict(zip(self.alarms, alarms, strict=False)),  # there are none with --no-alarms
            role=self._role() if self.arguments.create_role else None,
        )

    def _role(self) -> RoleChange:
        aws, key = self.aws, self.arguments.kms_key or self.spec.data.kms_key
        scope = scope_of(self.arguments, aws.partition, aws.region, aws.account, key)
        return plan_role(aws, self.spec.name, execution_policy(scope))

    def component_goal(self, model_name: str) -> ComponentGoal:
        """The endpoint's component as it is wanted.

        Args:
            model_name: The name of the endpoint's model.
        """
        update = ComponentUpdate(
            traffic=self.arguments.traffic,
            bake_s=self.arguments.bake_s,
            alarms=self.alarms,
            most=options.max_count(self.arguments) * self.spec.instance.num_gpus,
        )
        specification = requests.component_specification(self.spec, model_name)
        create = requests.component_action(self.spec, specification)
        return ComponentGoal(self.spec.name, specification, create, update)


def begin(arguments: argparse.Namespace, console: Console) -> Deployment:
    """Check all that can be checked beforehand, and first what needs no AWS.

    Raises:
        CommandError: Something cannot work.
    """
    requests.check_name(arguments.name)
    options.check(arguments)
    environment, settings = container_environment(arguments.env, is_async=bool(arguments.async_output))
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
    spec = EndpointSpec(
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
        max_instances=options.max_count(arguments) if arguments.to_zero else None,
    )
    return Deployment(arguments, console, aws, spec, Waiter(aws.client("sagemaker"), spec.name, console))


def check_pool(goal: EndpointGoal, endpoint: Description | None, current: Description | None) -> None:
    """Check that an endpoint that exists can host the component.

    Args:
        goal: The endpoint as it is wanted.
        endpoint: The endpoint as it is; None if there is none.
        current: The endpoint's present configuration; None if there is none.

    Raises:
        CommandError: The endpoint is of another kind or has other instances.
    """
    if ENDPOINT.status(endpoint) not in ("InService", "UpdateRollbackFailed"):
        return
    if endpoint is None or endpoint["EndpointConfigName"] == goal.config_name:
        return
    has_model = current is None or "ModelName" in current["ProductionVariants"][0]
    wrong = (
        "has the model itself" if has_model else "has other instances, another role, network or --max-count"
    )
    raise CommandError(
        f"{goal.name} {wrong}: --to-zero cannot change that",
        f"give the new endpoint another name, or delete this one first: scripts/delete {goal.name}",
    )


def _initial_count(config: Mapping[str, Any] | None) -> int | None:
    return config["ProductionVariants"][0].get("InitialInstanceCount") if config else None
