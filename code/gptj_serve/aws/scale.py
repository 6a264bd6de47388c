"""``scripts/scale``: makes an endpoint grow and shrink with its load."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError
from gptj_serve.aws.common.plan import Action, show
from gptj_serve.aws.endpoint import autoscaling
from gptj_serve.aws.endpoint.autoscaling import Scalable, ScalingSpec, most_copies, obstacle
from gptj_serve.aws.endpoint.inventory import check_component, existing, find_components
from gptj_serve.aws.endpoint.lookup import (
    TAG,
    check_ours,
    describe_config,
    describe_endpoint,
    describe_model,
    endpoint_name,
)
from gptj_serve.aws.machines.capacity import capacity
from gptj_serve.aws.machines.instances import find_instance

DESCRIPTION = """\
Let an endpoint grow and shrink with its load: Application Auto Scaling keeps the number of requests
inside each instance, which SageMaker counts every 10 seconds, near a target. Run it again to change
something; the same arguments again change nothing."""

EXAMPLES = """
scripts/scale gpt-j --max 4                       1 to 4 instances, the target from the engine's batch size
scripts/scale gpt-j --min 2 --max 8 --target 20   about 20 requests inside each
scripts/scale gpt-j --max 4 --dry-run             the calls, and nothing done
scripts/scale gpt-j --max 2 --to-zero             no instance, and no cost, while nobody asks
scripts/scale gpt-j --off                         stays as large as it is
"""

OUT_COOLDOWN_S = 60
IN_COOLDOWN_S = 600
"""An instance takes minutes to start, so it only ends when it was not needed for ten minutes."""
REQUEST_TOKENS = 512


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _scale, argv)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("scale", DESCRIPTION, EXAMPLES)
    add = parser.add_argument
    add("name", nargs="?", type=endpoint_name, default="gpt-j", help="the endpoint (default: gpt-j)")
    add("--min", type=int, help="instances at least (default: 1; 0 with --to-zero)")
    add("--max", type=int, help="instances at most")
    what = "requests inside each instance at once (default: 70 %% of what its engine works on at once)"
    add("--target", type=float, help=what)
    what = "tokens of a usual request, prompt and answer together: says how many fit a small GPU at once"
    add("--request-tokens", type=int, default=REQUEST_TOKENS, metavar="N", help=_default(what))
    what = "seconds between growing and growing again"
    add("--out-cooldown", type=int, default=OUT_COOLDOWN_S, metavar="S", help=_default(what))
    what = "seconds between any change and shrinking"
    add("--in-cooldown", type=int, default=IN_COOLDOWN_S, metavar="S", help=_default(what))
    what = "shrink to no instance at all: endpoints with an inference component, and asynchronous ones"
    add("--to-zero", action="store_true", help=what)
    add("--off", action="store_true", help="no scaling any more")
    return parser


def _default(what: str) -> str:
    return f"{what} (default: %(default)s)"


def _scale(arguments: argparse.Namespace, console: Console) -> None:
    limits = _limits(arguments)
    aws = connect(arguments.region, arguments.profile)
    found = _find(aws, arguments.name)
    there = existing(aws, found.it)
    if limits is None:
        actions = autoscaling.removal(found.it, there)
        _finish(aws, console, arguments.dry_run, actions, *_without(found.it))
        return
    _check(found, limits)
    at_once = capacity(found.environment, find_instance(found.instance_type), arguments.request_tokens)
    target = float(arguments.target or at_once.target)
    why = "as asked for" if arguments.target else f"70 % of {at_once.num_requests}: {at_once.why}"
    wanted = ScalingSpec(*limits, target, arguments.out_cooldown, arguments.in_cooldown)
    actions = autoscaling.plan(found.it, wanted, there, {TAG: arguments.name})
    _finish(aws, console, arguments.dry_run, actions, *_with(found.it, wanted, why))


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """What is to be scaled, and the facts that are needed for that."""

    it: Scalable
    status: str
    variant: Mapping[str, Any]
    instance_type: str
    environment: Mapping[str, str]


def _limits(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """The smallest and the largest number; None to end scaling."""
    if arguments.off:
        if any(value is not None for value in (arguments.min, arguments.max, arguments.target)):
            raise UsageError("--off ends all scaling: it goes with none of --min, --max and --target")
        return None
    if arguments.max is None:
        raise UsageError("--max is missing: how many instances at most? (`scripts/status` shows what is set)")
    smallest = arguments.min if arguments.min is not None else 0 if arguments.to_zero else 1
    if arguments.to_zero and smallest:
        raise UsageError(f"--min {smallest} and --to-zero exclude each other")
    checks = (
        (arguments.max >= 1, f"--max {arguments.max}: must be 1 or more"),
        (0 <= smallest <= arguments.max, f"--min {smallest}: must be from 0 to --max {arguments.max}"),
        (
            arguments.target is None or 0 < arguments.target < math.inf,
            f"--target {arguments.target}: must be above 0, and finite",
        ),
        (
            1 <= arguments.request_tokens <= 2048,
            f"--request-tokens {arguments.request_tokens}: must be from 1 to 2048",
        ),
        (
            0 <= arguments.out_cooldown <= 3600,
            f"--out-cooldown {arguments.out_cooldown}: must be from 0 to 3600",
        ),
        (
            0 <= arguments.in_cooldown <= 3600,
            f"--in-cooldown {arguments.in_cooldown}: must be from 0 to 3600",
        ),
    )
    for holds, message in checks:
        if not holds:
            raise UsageError(message)
    return smallest, arguments.max


def _find(aws: Aws, name: str) -> _Found:
    sagemaker = aws.client("sagemaker")
    endpoint = describe_endpoint(sagemaker, name)
    if endpoint is None:
        raise CommandError(
            f"there is no endpoint {name} in {aws.region}", "`scripts/status` shows those there are"
        )
    check_ours(sagemaker, name, endpoint, "deploy one with scripts/deploy, or scale it as it was made")
    config = describe_config(sagemaker, endpoint["EndpointConfigName"])
    if config is None:
        raise CommandError(
            f"the configuration {endpoint['EndpointConfigName']} of {name} is gone: deploy it again"
        )
    variant = config["ProductionVariants"][0]
    components = find_components(aws, name)
    if "AsyncInferenceConfig" in config:
        it = autoscaling.asynchronous(name, variant["VariantName"])
    elif "ModelName" in variant:
        it = autoscaling.variant(name, variant["VariantName"])
    elif len(components) == 1:
        check_component(aws, name, components[0], "scale it as it was made")
        it = autoscaling.component(name, components[0]["InferenceComponentName"])
    else:
        raise CommandError(f"{name} hosts {len(components)} inference components; it must have one")
    model = variant.get("ModelName") or components[0]["Specification"]["ModelName"]
    container = (describe_model(sagemaker, model) or {}).get("PrimaryContainer", {})
    return _Found(
        it, endpoint["EndpointStatus"], variant, variant["InstanceType"], container.get("Environment", {})
    )


def _check(found: _Found, limits: tuple[int, int]) -> None:
    name = found.it.endpoint
    if found.status != "InService":
        raise CommandError(
            f"{name} is {found.status}: scaling can be set when it is InService",
            f"`scripts/status {name}` says why",
        )
    most = most_copies(found.variant)
    if found.it.what == "copies" and most is not None and limits[1] > most:
        raise UsageError(
            f"--max {limits[1]}: {name} has room for {most} copies",
            f"its instances were limited when it was made: scripts/deploy {name} --max-count",
        )
    if limits[0]:
        return
    if found.it.wake_metric is None or (found.it.what == "copies" and obstacle(found.variant)):
        raise CommandError(
            f"{name} cannot shrink to zero: {obstacle(found.variant)}",
            "SageMaker cannot change that: scripts/deploy --to-zero makes one that can (docs/operations.md)",
        )


def _with(it: Scalable, wanted: ScalingSpec, why: str) -> tuple[dict[str, Any], str]:
    fields = {"endpoint": it.endpoint, "scales": it.resource_id, **dataclasses.asdict(wanted), "why": why}
    inside = "waiting for each" if it.what == "instances" and it.wake_metric else "inside each at once"
    text = (
        f"{it.endpoint} scales from {wanted.smallest} to {wanted.largest} {it.what}, "
        f"at {wanted.target:g} requests {inside} ({why})."
    )
    return fields, text


def _without(it: Scalable) -> tuple[dict[str, Any], str]:
    return {"endpoint": it.endpoint, "scales": None}, f"{it.endpoint} does not scale."


def _finish(
    aws: Aws, console: Console, dry_run: bool, actions: list[Action], fields: dict[str, Any], text: str
) -> None:
    if dry_run:
        steps = [action.to_dict() for action in actions]
        console.result({"dry_run": True, "steps": steps}, show(actions))
        return
    apply(aws, console, actions)
    console.result({**fields, "changed": bool(actions)}, text if actions else f"{text} It was so already.")


def apply(aws: Aws, console: Console, actions: Sequence[Action]) -> None:
    """Make the calls; an alarm's request gets the ARN of the policy that was made before it."""
    arn = ""
    for action in actions:
        console.progress(f"{action.service} {action.operation}: {action.note}")
        if action.request.get("AlarmActions") == [autoscaling.POLICY_ARN]:
            action = dataclasses.replace(action, request={**action.request, "AlarmActions": [arn]})
        arn = action.apply(aws).get("PolicyARN", arn)


if __name__ == "__main__":
    sys.exit(main())
