"""Finds the role that an endpoint runs with, or makes it if that is asked for."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError, is_denied
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.endpoint.lookup import or_none

ROLE_NAME = "gptj-serve-execution"
"""The role that ``--create-role`` makes; endpoints share it, and each has a policy of its own in it."""

TAG = "gptj-serve:role"
"""Key of the tag that marks a role as made by us."""

TRUST: Mapping[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


def our_role_arn(aws: Aws) -> str:
    """The ARN of the role that ``--create-role`` makes."""
    return f"arn:{aws.partition}:iam::{aws.account}:role/{ROLE_NAME}"


def find_execution_role(aws: Aws, role: str, console: Console) -> str:
    """The ARN of a role that SageMaker may assume.

    Args:
        aws: The account and region.
        role: The role's ARN or name.
        console: Where to say that the role could not be checked.

    Raises:
        UsageError: This is no role of the account.
        CommandError: There is no such role, or it does not trust SageMaker.
        ClientError: AWS refuses, and not because the caller may not look.
    """
    if role.startswith("arn:"):
        _check_arn(aws, role)
    name = role.rpartition("/")[2]
    try:
        found = find_role(aws, name)
    except ClientError as error:
        if not is_denied(error):
            raise
        console.progress(f"Whether there is a role {name} could not be checked (iam:GetRole).")
        return role if role.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account}:role/{role}"
    arn = str(found["Arn"]) if found else role
    if found is None or (role.startswith("arn:") and arn != role):
        raise CommandError(
            f"--role {role}: there is no such role" + (f", but {arn}" if found else ""),
            "--role takes the ARN or the name of one that is there; --create-role makes one",
        )
    if "sagemaker." not in json.dumps(found.get("AssumeRolePolicyDocument", "sagemaker.")):
        raise CommandError(
            f"--role {role}: it does not let SageMaker take it on",
            "scripts/deploy --print-iam execution-role prints the trust policy that it needs; "
            "--create-role makes a role that has it",
        )
    return arn


def _check_arn(aws: Aws, arn: str) -> None:
    found = re.fullmatch(r"arn:aws[a-z-]*:iam::(\d{12}):role/[\w+=,.@/-]+", arn)
    if not found:
        kind = re.match(r"arn:aws[a-z-]*:(?:iam|sts)::\d*:([\w-]+)", arn)
        raise UsageError(
            f"--role {arn}: {f'this is a {kind[1]}' if kind else 'no ARN of a role'}, "
            "and endpoints run with a role of IAM",
            f"it looks like arn:{aws.partition}:iam::{aws.account}:role/NAME; --create-role makes one",
        )
    if found[1] != aws.account:
        raise UsageError(
            f"--role {arn}: it is in the account {found[1]}, the endpoint in {aws.account}",
            "--role takes one of the endpoint's account, --profile another account",
        )


def policy_name(endpoint: str, region: str) -> str:
    """The name of an endpoint's policy in the role. It has the region, because roles are global."""
    return f"gptj-serve-{region}-{endpoint}"


@dataclass(frozen=True, slots=True)
class RoleChange:
    """The calls that change the role.

    Attributes:
        actions: The calls that make or complete it; none if it is right already.
        undo: The calls that give an endpoint that existed before its old permissions back.
    """

    actions: tuple[Action, ...] = ()
    undo: tuple[Action, ...] = ()


def plan_role(aws: Aws, endpoint: str, policy: Mapping[str, Any]) -> RoleChange:
    """Compare the role with what an endpoint needs.

    Raises:
        CommandError: The role exists, and somebody else made it.
        ClientError: AWS refuses to tell.
    """
    actions = []
    role = find_role(aws, ROLE_NAME)
    if role is None:
        request = {
            "RoleName": ROLE_NAME,
            "AssumeRolePolicyDocument": json.dumps(TRUST),
            "Description": "Runs endpoints of gptj-serve",
            "Tags": [{"Key": TAG, "Value": ROLE_NAME}],
        }
        actions.append(Action("iam", "create_role", request, "the endpoint's role"))
    elif not _is_ours(role):
        raise CommandError(
            f"--create-role: the role {ROLE_NAME} has no tag {TAG}: somebody else made it",
            f"--role {ROLE_NAME} uses it as it is; if it is ours all the same: "
            f"`aws iam tag-role --role-name {ROLE_NAME} --tags Key={TAG},Value={ROLE_NAME}`",
        )
    before = None if actions else _policy_of(aws, endpoint)
    if before == policy:
        return RoleChange()
    actions.append(_put(aws, endpoint, policy, "what the endpoint may do"))
    undo = _delete(aws, endpoint) if before is None else _put(aws, endpoint, before, "as it was before")
    return RoleChange(tuple(actions), (undo,))


def removal_actions(aws: Aws, endpoint: str, console: Console) -> list[Action]:
    """The calls that remove an endpoint's policy from our role; none if it has none there.

    Raises:
        ClientError: AWS refuses to tell.
    """
    if _policy_of(aws, endpoint) is None:
        return []
    if _is_ours(find_role(aws, ROLE_NAME) or {}):
        return [_delete(aws, endpoint)]
    name = policy_name(endpoint, aws.region)
    console.progress(
        f"note: the role {ROLE_NAME} has no tag {TAG}, so its policy {name} stays: "
        f"`aws iam delete-role-policy --role-name {ROLE_NAME} --policy-name {name}` deletes it"
    )
    return []


def find_role(aws: Aws, name: str) -> Mapping[str, Any] | None:
    """A role's description; None if there is no such role.

    Raises:
        ClientError: AWS refuses to tell.
    """
    answer = or_none(aws.client("iam").get_role, RoleName=name)
    return answer["Role"] if answer else None


def _is_ours(role: Mapping[str, Any]) -> bool:
    return {"Key": TAG, "Value": ROLE_NAME} in role.get("Tags", [])


def _put(aws: Aws, endpoint: str, policy: Mapping[str, Any], note: str) -> Action:
    request = {**_key(aws, endpoint), "PolicyDocument": json.dumps(policy)}
    return Action("iam", "put_role_policy", request, note)


def _delete(aws: Aws, endpoint: str) -> Action:
    return Action("iam", "delete_role_policy", _key(aws, endpoint), "what the endpoint might do")


def _key(aws: Aws, endpoint: str) -> dict[str, str]:
    return {"RoleName": ROLE_NAME, "PolicyName": policy_name(endpoint, aws.region)}


def _policy_of(aws: Aws, endpoint: str) -> Any:
    answer = or_none(aws.client("iam").get_role_policy, **_key(aws, endpoint))
    return answer["PolicyDocument"] if answer else None
