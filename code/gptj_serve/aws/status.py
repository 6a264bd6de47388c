"""``scripts/status``: shows what exists, what it costs, and what is wrong with it."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence

from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.endpoint.inventory import take_inventory
from gptj_serve.aws.endpoint.lookup import TAG, describe_config, describe_model, endpoint_name, has_tag
from gptj_serve.aws.endpoint.report import (
    HOURS_A_DAY,
    Fleet,
    Report,
    ScalingReport,
    hints,
    make_report,
    total,
)
from gptj_serve.aws.machines.instances import PRICES_AS_OF, find_instance

DESCRIPTION = """\
Show an endpoint: its state and what is wrong with it, instances, image, model data, scaling, alarms,
what earlier deployments left, and what it costs by the hour. Without a name: every endpoint made by
scripts/deploy in this region. Changes nothing."""

EXAMPLES = """
scripts/status                      every endpoint of ours
scripts/status gpt-j                one of them
scripts/status gpt-j --json         for programs
watch -n 30 scripts/status gpt-j    while it starts
"""

PRICES = f"list prices in us-east-1, {PRICES_AS_OF}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _status, argv)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("status", DESCRIPTION, EXAMPLES)
    parser.add_argument("name", nargs="?", type=endpoint_name, help="the endpoint (default: all)")
    return parser


def _status(arguments: argparse.Namespace, console: Console) -> None:
    aws = connect(arguments.region, arguments.profile)
    reports = [_report(aws, name) for name in _names(aws, arguments.name)]
    cost = total([report.usd_an_hour for report in reports])
    fields = {
        "region": aws.region,
        "endpoints": [{**dataclasses.asdict(one), "hints": list(hints(one))} for one in reports],
        "usd_an_hour": cost,
        "prices": PRICES,
    }
    console.result(fields, "\n".join(_text(aws, reports, cost)))


def _names(aws: Aws, name: str | None) -> list[str]:
    if name is not None:
        return [name]
    sagemaker = aws.client("sagemaker")
    pages = sagemaker.get_paginator("list_endpoints").paginate(SortBy="Name", SortOrder="Ascending")
    listed = [item for page in pages for item in page["Endpoints"]]
    return [
        one["EndpointName"] for one in listed if has_tag(sagemaker, one["EndpointArn"], one["EndpointName"])
    ]


def _report(aws: Aws, name: str) -> Report:
    inventory = take_inventory(aws, name)
    if inventory.is_empty:
        raise CommandError(
            f"there is no endpoint {name} in {aws.region}", "`scripts/status` shows those there are"
        )
    sagemaker = aws.client("sagemaker")
    endpoint = inventory.resources.endpoint
    name_of_config = (endpoint or {}).get("EndpointConfigName")
    config = describe_config(sagemaker, name_of_config) if name_of_config else None
    variants = (config or {}).get("ProductionVariants", [])
    names = [one["ModelName"] for one in variants if "ModelName" in one]
    names += [one["Specification"]["ModelName"] for one in inventory.components]
    found = (describe_model(sagemaker, one) for one in dict.fromkeys(names))
    return make_report(inventory, config, tuple(one for one in found if one))


def _text(aws: Aws, reports: Sequence[Report], cost: float | None) -> Iterator[str]:
    if not reports:
        yield f"No endpoint of ours in {aws.region} (none has the tag {TAG})."
    for report in reports:
        yield from _block(report)
        yield ""
    if len(reports) > 1:
        yield f"All of it: {_money(cost)}"
    if reports:
        yield f"({PRICES}; what S3, ECR, CloudWatch and traffic cost is not counted)"


def _block(report: Report) -> Iterator[str]:
    yield f"{report.name}: {report.status or 'no endpoint'}"
    for what, text in _lines(report):
        yield f"  {what:<14} {text}"
    for hint in hints(report):
        yield f"  ! {hint}"


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    if report.failure:
        yield "failed", report.failure
    if report.update:
        yield "updating", report.update
    if report.changed:
        yield "last changed", report.changed
    if report.config:
        yield "configuration", report.config
    for fleet in report.fleets:
        yield "instances", _fleet(fleet)
    for component in report.components:
        copies = f"{component.current_copies} of {component.desired_copies} copies"
        yield "component", f"{component.name}, {component.status}, {copies}"
    for model in report.models:
        yield "model", model.name
        yield "image", model.image or "none"
        yield "model data", model.data or "none"
        settings = " ".join(f"{key}={value}" for key, value in sorted(model.settings.items()))
        yield "settings", settings or "all by default"
    for scaling in report.scaling:
        yield "scaling", _scaling(scaling)
    if report.status and not report.scaling:
        yield "scaling", "none"
    for alarm in report.alarms:
        yield "alarm", f"{alarm.name}: {alarm.state}" + (", rolls updates back" if alarm.rolls_back else "")
    for one in report.left_over:
        yield "left over", one
    if report.status:
        yield "costs", _money(report.usd_an_hour)


def _fleet(fleet: Fleet) -> str:
    instance = find_instance(fleet.instance_type) if fleet.instance_type else None
    count = f"{fleet.current}" if fleet.current == fleet.desired else f"{fleet.current} of {fleet.desired}"
    gpus = f" ({instance.num_gpus} x {instance.gpu.name} each)" if instance and instance.gpu else ""
    return f"{count} x {fleet.instance_type or 'unknown type'}{gpus}"


def _scaling(scaling: ScalingReport) -> str:
    what = "copies" if scaling.resource_id.startswith("inference-component/") else "instances"
    target = "" if scaling.target is None else f", {scaling.target:g} requests each"
    return f"{scaling.smallest} to {scaling.largest} {what}{target}"


def _money(usd_an_hour: float | None) -> str:
    if usd_an_hour is None:
        return "unknown: there is no list price for this instance type here"
    return f"${usd_an_hour:,.2f} an hour, ${usd_an_hour * HOURS_A_DAY:,.2f} a day"


if __name__ == "__main__":
    sys.exit(main())
