"""The command line of ``scripts/deploy``."""

import argparse

from gptj_serve import values
from gptj_serve.aws.common import tags
from gptj_serve.aws.common.command import make_parser
from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.endpoint import alarms
from gptj_serve.aws.endpoint.deploying.requests import TRAFFIC
from gptj_serve.aws.iam.grants import COMMANDS
from gptj_serve.aws.iam.policies import check_key
from gptj_serve.aws.iam.roles import ROLE_NAME

DESCRIPTION = """\
Make an endpoint on SageMaker, or change one, and wait until it is in service.

With the same arguments it changes nothing. With others (a new image, another instance type) the endpoint
is updated without a gap: new instances beside the old ones, watched for a while; if they answer with errors
or too slowly, the old ones stay. Interrupted, run it again: it goes on."""

EXAMPLES = """
IMAGE=$(scripts/push) DATA=$(scripts/upload-model)
scripts/deploy --image $IMAGE --model-data $DATA --create-role --dry-run
scripts/deploy --image $IMAGE --model-data $DATA --create-role
scripts/deploy --image $IMAGE --model-data $DATA --role MyExecutionRole --instance-type ml.g5.2xlarge
scripts/deploy gpt-j --image $IMAGE --model-data $DATA --create-role --count 4 --traffic canary --bake-s 600
scripts/deploy gpt-j-idle --image $IMAGE --model-data $DATA --create-role --to-zero --max-count 2
scripts/deploy gpt-j-later --image $IMAGE --model-data $DATA --create-role --async-output s3://my-bucket/answers/
scripts/deploy --print-iam deploy
"""

MAX_COUNT = 4
"""How many instances an endpoint that may have none has at most, unless its user says otherwise."""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    made = make_parser("deploy", DESCRIPTION, EXAMPLES)
    made.add_argument(
        "name", nargs="?", default="gpt-j", metavar="NAME", help="the endpoint's (default: gpt-j)"
    )
    made.add_argument("--image", metavar="URI", help="in ECR, with its digest, as scripts/push prints it")
    made.add_argument(
        "--model-data", metavar="S3_URI", help="a prefix, or a model.tar.gz, from scripts/upload-model"
    )
    made.add_argument(
        "--print-iam",
        nargs="?",
        const="",
        metavar="COMMAND",
        help="print the IAM policies that "
        f"commands and the execution role need, or one of: {', '.join(COMMANDS)}, execution-role",
    )
    _add_role(made.add_argument_group("execution role (one of the two)").add_mutually_exclusive_group())
    _add_role_needs(made.add_argument_group("what the role of --create-role, or of --print-iam, may besides"))
    _add_instances(made.add_argument_group("instances"))
    tags.add_option(made)
    _add_container(made.add_argument_group("container"))
    _add_update(made.add_argument_group("updates and failures"))
    return made


def _add_role(group: argparse._MutuallyExclusiveGroup) -> None:
    group.add_argument("--role", metavar="ARN", help="ARN or name of the role that the endpoint runs with")
    group.add_argument("--create-role", action="store_true", help=f"make, or complete, a role {ROLE_NAME}")


def _add_role_needs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--kms-key",
        metavar="KEY",
        help="KMS key that the model's files are encrypted with: id, ARN or alias/NAME (default: as S3 says)",
    )
    group.add_argument(
        "--async-input",
        action="append",
        default=[],
        metavar="S3_URI",
        help="where requests are read from besides below --async-output (repeatable)",
    )


def _add_instances(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--instance-type", default="ml.g4dn.2xlarge", metavar="TYPE", help="default: %(default)s"
    )
    group.add_argument(
        "--count", type=values.whole(1, 1000), default=1, metavar="N", help="instances at first (default: 1)"
    )
    group.add_argument(
        "--volume-gb",
        type=values.whole(1, 512),
        metavar="GB",
        help="disk, for types without one of their own (p3, CPUs)",
    )
    group.add_argument(
        "--to-zero",
        action="store_true",
        help="host the model as an inference component, so that it can scale to no instance at all",
    )
    group.add_argument(
        "--max-count",
        type=values.whole(1, 1000),
        metavar="N",
        help=f"with --to-zero: instances at most, for good (default: {MAX_COUNT})",
    )
    group.add_argument(
        "--inference-ami",
        metavar="VERSION",
        help="host image, by which goes the GPU's driver (default: by the instance type)",
    )
    group.add_argument(
        "--subnets", type=values.texts, default=(), metavar="ID,…", help="network of the containers"
    )
    group.add_argument(
        "--security-groups", type=values.texts, default=(), metavar="ID,…", help="and its rules"
    )


def _add_container(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="a setting (repeatable)"
    )
    group.add_argument("--isolated", action="store_true", help="the container gets no network")
    group.add_argument(
        "--download-timeout-s", type=values.whole(60, 3600), metavar="S", help="default: by the model's size"
    )
    group.add_argument(
        "--startup-timeout-s", type=values.whole(60, 3600), metavar="S", help="default: by the model's size"
    )
    group.add_argument(
        "--async-output", metavar="S3_URI", help="an asynchronous endpoint, whose answers go there"
    )
    group.add_argument(
        "--async-concurrency",
        type=values.whole(1, 1000),
        metavar="N",
        help="requests an instance gets at once",
    )


def _add_update(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--traffic",
        choices=TRAFFIC,
        default="auto",
        help="how an update moves it: all at once, or a "
        "tenth of the instances first, which auto does when there are several",
    )
    group.add_argument(
        "--bake-s",
        type=values.whole(0, 3600),
        default=300,
        metavar="S",
        help="seconds to watch an update before the old instances end (default: 300)",
    )
    group.add_argument(
        "--rollback-latency-s",
        type=values.number(0, 3600),
        metavar="S",
        help="an update is called off when the slowest 1 %% of answers, or of first pieces of streams, take "
        "longer (default: 55, and never with --async-output; 0: never)",
    )
    group.add_argument("--no-alarms", action="store_true", help="no alarms: no update is called off")
    group.add_argument(
        "--capacity-wait",
        type=values.number(0, 1440),
        default=30.0,
        metavar="MINUTES",
        help="try again so long while AWS has no such instance (default: 30)",
    )
    group.add_argument("--keep", action="store_true", help="take nothing away when it fails, to look into it")


def latency_s(arguments: argparse.Namespace) -> float:
    """How many seconds the slowest hundredth of the answers may take in an update; 0 for no limit."""
    if arguments.rollback_latency_s is not None:
        return float(arguments.rollback_latency_s)
    # an asynchronous request may take 15 minutes
    return 0.0 if arguments.async_output else alarms.DEFAULT_LATENCY_S


def max_count(arguments: argparse.Namespace) -> int:
    """How many instances an endpoint that may have none has at most."""
    return int(arguments.max_count or MAX_COUNT)


def check(arguments: argparse.Namespace) -> None:
    """Check the options, as far as that goes without asking AWS.

    Raises:
        UsageError: An option is missing, or does not go with another.
    """
    for option in ("image", "model_data"):
        if not getattr(arguments, option):
            raise UsageError(f"--{option.replace('_', '-')} is missing", "scripts/deploy --help has examples")
    if not arguments.role and not arguments.create_role:
        raise UsageError(
            "--role is missing: the role that the endpoint runs with",
            "--create-role makes one; --print-iam execution-role shows what one must be allowed",
        )
    if bool(arguments.subnets) != bool(arguments.security_groups):
        raise UsageError("--subnets and --security-groups: both or neither")
    if arguments.traffic == "canary" and arguments.count < 2 and not arguments.to_zero:
        raise UsageError("--traffic canary: needs --count 2 or more, one instance cannot be divided")
    if arguments.async_output:
        S3Url.parse(arguments.async_output, "--async-output")
    for place in arguments.async_input:
        S3Url.parse(place, "--async-input")
    if arguments.async_input and not arguments.async_output:
        raise UsageError("--async-input: only with --async-output")
    if arguments.kms_key:
        check_key(arguments.kms_key)
    _check_to_zero(arguments)
    if arguments.async_concurrency and not arguments.async_output:
        raise UsageError("--async-concurrency: only with --async-output")


def _check_to_zero(arguments: argparse.Namespace) -> None:
    if arguments.max_count and not arguments.to_zero:
        raise UsageError("--max-count: only with --to-zero; scripts/scale sets the limits of other endpoints")
    if arguments.to_zero and arguments.async_output:
        raise UsageError(
            "--to-zero: not with --async-output, which needs no component: scripts/scale --to-zero"
        )
    if arguments.to_zero and arguments.count > (most := max_count(arguments)):
        raise UsageError(f"--count {arguments.count}: more than --max-count {most}")
