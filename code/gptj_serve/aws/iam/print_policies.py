"""``scripts/deploy --print-iam``: prints the policies that commands and the execution role need."""

import argparse
import json

from gptj_serve.aws.common.clients import partition_of
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.iam import grants, policies
from gptj_serve.aws.image.uri import ImageUri
from gptj_serve.aws.model.in_s3 import parse_place


def print_iam(arguments: argparse.Namespace, console: Console) -> None:
    """Print the policies that ``--print-iam`` asks for; AWS is not asked.

    Raises:
        UsageError: The option names no command.
    """
    command = arguments.print_iam or None
    known = [*grants.COMMANDS, "execution-role"]
    if command is not None and command not in known:
        raise UsageError(f"--print-iam {command}: no such command; there are {', '.join(known)}")
    for place in arguments.async_input:
        S3Url.parse(place, "--async-input")
    partition = partition_of(arguments.region, arguments.profile)
    scope = scope_of(arguments, partition, arguments.region or "*", "*", arguments.kms_key)
    documents = grants.documents(scope, command)
    console.result(documents, json.dumps(documents if command is None else documents[command], indent=2))


def scope_of(
    arguments: argparse.Namespace, partition: str, region: str, account: str, key: str | None
) -> policies.Scope:
    """The resources that the options of ``scripts/deploy`` name; what they do not name is "*".

    Args:
        arguments: The parsed command line.
        partition, region, account: Parts of ARNs; "*" where they are not known.
        key: KMS key of the model's files.

    Raises:
        UsageError: An option's value is not valid.
    """
    image = ImageUri.parse(arguments.image) if arguments.image else None
    data = parse_place(arguments.model_data) if arguments.model_data else S3Url("*", "")
    answers = arguments.async_output
    output = S3Url.parse(answers, "--async-output").as_prefix() if answers else None
    return policies.Scope(
        partition=partition,
        region=region,
        account=account,
        name=arguments.name,
        registry=image.account if image else account,
        registry_region=image.region if image else region,
        repository=image.repository if image else "gptj-serve",
        bucket=data.bucket,
        prefix=data.key,
        key=policies.check_key(key) if key else None,
        role=arguments.role,
        output=output,
        inputs=tuple(S3Url.parse(one, "--async-input").as_prefix() for one in arguments.async_input),
        in_vpc=bool(arguments.subnets),
    )
