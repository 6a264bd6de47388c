"""Shows the plan of ``scripts/deploy``, or its result."""

from gptj_serve.aws.common.plan import show, validate
from gptj_serve.aws.endpoint.deploying import options
from gptj_serve.aws.endpoint.deploying.checks import costs
from gptj_serve.aws.endpoint.deploying.deployment import Deployment
from gptj_serve.aws.endpoint.deploying.goals import EndpointGoal, Rollout
from gptj_serve.aws.endpoint.lookup import Description
from gptj_serve.aws.endpoint.waiting import duration
from gptj_serve.aws.machines.instances import PRICES_AS_OF


def show_plan(made: Deployment, rollout: Rollout, waits: list[str]) -> None:
    """Show what would be done, and what it would cost."""
    for action in rollout.actions:
        validate(action)
    notes = costs(made.spec, rollout.kind)
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


def show_end(made: Deployment, kind: str, goal: EndpointGoal, endpoint: Description) -> None:
    """Show what exists now.

    Args:
        made: The run.
        kind: What was done, as in `Rollout.kind`.
        goal: The goal that was reached.
        endpoint: The endpoint's description.
    """
    spec = made.spec
    variants = endpoint.get("ProductionVariants") or [{}]
    count = variants[0].get("CurrentInstanceCount", spec.num_instances)
    price = spec.instance.price_usd_hour
    fields = {
        "endpoint": spec.name,
        "status": endpoint["EndpointStatus"],
        "change": kind,
        "config": goal.config_name,
        "model": goal.model_name,
        "image": spec.image,
        "instance_type": spec.instance.name,
        "instances": count,
        "usd_per_hour": price and round(price * count, 4),
        "region": made.aws.region,
        "elapsed_s": round(made.waiter.elapsed_s, 1),
    }
    made.console.result(fields, _summary(made, kind, count))


def _summary(made: Deployment, kind: str, count: int) -> str:
    spec, price = made.spec, made.spec.instance.price_usd_hour
    money = (
        "" if price is None else f", about ${price * count:.2f} an hour (us-east-1, {PRICES_AS_OF}; check)"
    )
    state = "is in service, nothing to change" if kind == "none" else "is in service"
    took = "" if kind == "none" else f" after {duration(made.waiter.elapsed_s)}"
    how = f" --component {spec.name}" if spec.is_pool else " --async" if spec.async_output else ""
    most = options.max_count(made.arguments)
    lines = (
        f"{spec.name} {state}{took}: {count} x {spec.instance.name}{money}.",
        f'Ask it: scripts/invoke {spec.name}{how} "In the beginning"',
        *([f"Let it shrink: scripts/scale {spec.name} --max {most} --to-zero"] if spec.is_pool else []),
        f"End it: scripts/delete {spec.name}",
    )
    return "\n".join(lines)
