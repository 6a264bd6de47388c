"""``scripts/delete``: deletes an endpoint and everything that was made for it."""

import argparse
import sys
from collections.abc import Sequence

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError, is_denied
from gptj_serve.aws.common.plan import Action, show
from gptj_serve.aws.endpoint.inventory import Inventory, check_component, take_inventory
from gptj_serve.aws.endpoint.lookup import check_ours, endpoint_name
from gptj_serve.aws.endpoint.removal import describe, endpoint_actions, remove, rest_actions, scaling_actions
from gptj_serve.aws.endpoint.shared import Belongings, find_belongings
from gptj_serve.aws.iam.roles import ROLE_NAME, removal_actions

DESCRIPTION = """\
Delete an endpoint and what was made for it: scaling, inference components, the endpoint itself, alarms,
its configurations and models, earlier ones too. Waits until it is really gone. What is gone already is
no error, and an interrupted run is finished by the same command. With --all also the model data that
scripts/upload-model put into S3 and the repository that scripts/push made, unless another endpoint
uses them."""

EXAMPLES = """
scripts/delete gpt-j               the endpoint; model data and image stay, so deploying again is quick
scripts/delete gpt-j --dry-run     what would go
scripts/delete gpt-j --all         model data and images too, after asking
scripts/delete gpt-j --all --yes   without asking, for scripts
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _delete, argv)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("delete", DESCRIPTION, EXAMPLES)
    parser.add_argument(
        "name", nargs="?", type=endpoint_name, default="gpt-j", help="the endpoint (default: gpt-j)"
    )
    parser.add_argument("--all", action="store_true", help="also model data and image repository")
    parser.add_argument("--model-data", metavar="S3-URL",
                        help="with --all: the model data, if no model is left that names it")  # fmt: skip
    parser.add_argument("--repository", metavar="NAME",
                        help="with --all: the repository, if no model is left that names it")  # fmt: skip
    parser.add_argument("--yes", action="store_true", help="with --all: do not ask")
    return parser


def _delete(arguments: argparse.Namespace, console: Console) -> None:
    if not arguments.all and (arguments.model_data or arguments.repository):
        raise UsageError("--model-data and --repository go with --all")
    aws = connect(arguments.region, arguments.profile)
    inventory = take_inventory(aws, arguments.name)
    hint = f"`aws sagemaker delete-endpoint --endpoint-name {arguments.name}` deletes it"
    check_ours(aws.client("sagemaker"), arguments.name, inventory.resources.endpoint, hint)
    for component in inventory.components:
        also = component["InferenceComponentName"]
        hint = f"`aws sagemaker delete-inference-component --inference-component-name {also}` deletes it"
        check_component(aws, arguments.name, component, hint)
    more = Belongings()
    if arguments.all:
        more = find_belongings(aws, inventory, arguments.model_data, arguments.repository)
        _hint(console, arguments, inventory)
    for one in more.kept:
        console.progress(f"kept: {one}")
    # the models name their data and repository, so they are deleted after those
    actions = [
        *scaling_actions(inventory),
        *endpoint_actions(inventory),
        *_role_actions(aws, console, arguments.name),
        *more.actions,
        *rest_actions(inventory),
    ]
    if arguments.dry_run:
        steps = [action.to_dict() for action in actions]
        console.result({"dry_run": True, "steps": steps, "kept": list(more.kept)}, show(actions))
        return
    if more.actions and not arguments.yes:
        _ask(arguments.name, actions)
    for action in actions:
        remove(aws, console, action)
    _finish(aws, console, inventory, actions, more)


def _role_actions(aws: Aws, console: Console, name: str) -> list[Action]:
    """Deletes the policy of ``deploy --create-role``; who may not look has most likely not used that."""
    try:
        return removal_actions(aws, name, console)
    except ClientError as error:
        if not is_denied(error):
            raise
        console.progress(
            f"Whether {ROLE_NAME} has a policy for {name} could not be seen (iam:GetRolePolicy)."
        )
        return []


def _hint(console: Console, arguments: argparse.Namespace, inventory: Inventory) -> None:
    if not inventory.resources.models and not (arguments.model_data and arguments.repository):
        console.progress(
            "No model is left that names its data and its repository: --model-data and --repository do."
        )


def _ask(name: str, actions: Sequence[Action]) -> None:
    """Ask a person to confirm.

    Raises:
        CommandError: The person does not confirm, or there is nobody to ask.
    """
    if not sys.stdin.isatty():
        raise CommandError("--all deletes model data and images for good", "--yes says that this is meant")
    lines = "\n".join(f"  {describe(action)}" for action in actions)
    print(
        f"This deletes, for good:\n{lines}\nType the endpoint's name to go on: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    if sys.stdin.readline().strip() != name:
        raise CommandError("that is not its name: nothing was deleted")


def _finish(
    aws: Aws, console: Console, inventory: Inventory, actions: Sequence[Action], more: Belongings
) -> None:
    deleted = [describe(action) for action in actions]
    fields = {"endpoint": inventory.name, "deleted": deleted, "kept": list(more.kept)}
    text = (
        f"{inventory.name} is gone." if actions else f"Nothing of {inventory.name} was there in {aws.region}."
    )
    console.result(fields, text)


if __name__ == "__main__":
    sys.exit(main())
