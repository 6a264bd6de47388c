"""``scripts/deploy --print-iam``: the policies that commands and the execution role need."""

import argparse
import json

from gptj_serve.aws import grants, iam
from gptj_serve.aws.clients import partition_of
from gptj_serve.aws.console import Console
from gptj_serve.aws.errors import UsageError
from gptj_serve.aws.image_uri import ImageUri
from gptj_serve.aws.model_data import parse_place
from gptj_serve.aws.s3 import S3Url


def print_iam(arguments: argparse.Namespace, console: Console) -> None:
    """Print the policies that ``--print-iam`` asks for; AWS is not asked.

    Raises:
        UsageError: It names no command.
    """
    command = arguments.print_iam or None
    known = [*grants.COMMANDS, "execution-role"]
    if command is not None and command not in known:
        raise UsageError(f"--print-iam {command}: no such command; there are {', '.join(known)}")
    partition = partition_of(arguments.region, arguments.profile)
    scope = scope_of(arguments, partition, arguments.region or "*", "*")
    documents = grants.documents(scope, command)
    console.result(documents, json.dumps(documents if command is None else documents[command], indent=2))


def scope_of(arguments: argparse.Namespace, partition: str, region: str, account: str) -> iam.Scope:
    """What the options of ``scripts/deploy`` say of the resources; what they do not say is "*"."""
    data = parse_place(arguments.model_data) if arguments.model_data else S3Url("*", "")
    answers = arguments.async_output
    output = S3Url.parse(answers, "--async-output").as_prefix() if answers else None
    role = arguments.role if arguments.role and arguments.role.startswith("arn:") else None
    return iam.Scope(
        partition=partition,
        region=region,
        account=account,
        name=arguments.name,
        repository=ImageUri.parse(arguments.image).repository if arguments.image else "gptj-serve",
        bucket=data.bucket,
        prefix=data.key,
        role_arn=role,
        output=output,
        in_vpc=bool(arguments.subnets),
    )
