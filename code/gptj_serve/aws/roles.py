"""The role that an endpoint runs with: what it may do, and making it when asked to."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.endpoints import is_missing
from gptj_serve.aws.plan import Action

ROLE_NAME = "gptj-serve-execution"
"""The role that ``--create-role`` makes; endpoints share it, each has a policy of its own in it."""

TRUST: Mapping[str, Any] = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
    ],
}


def role_arn(aws: Aws, role: str) -> str:
    """A role's ARN, from itself or from its name."""
    return role if role.startswith("arn:") else f"arn:{aws.partition}:iam::{aws.account}:role/{role}"


def policy_name(endpoint: str, region: str) -> str:
    """Name of the policy that an endpoint has in the role; roles are the same in all regions."""
    return f"gptj-serve-{region}-{endpoint}"


@dataclass(frozen=True, slots=True)
class RoleChange:
    """What is to be done to the role.

    Attributes:
        actions: The calls that make it, or complete it; none if it is right already.
        undo: The calls after which an endpoint that was there before may do what it might.
    """

    actions: tuple[Action, ...] = ()
    undo: tuple[Action, ...] = ()


def plan_role(aws: Aws, endpoint: str, policy: Mapping[str, Any]) -> RoleChange:
    """Compare the role with what an endpoint needs."""
    iam = aws.client("iam")
    actions = []
    try:
        iam.get_role(RoleName=ROLE_NAME)
    except ClientError as error:
        if not is_missing(error):
            raise
        request = {
            "RoleName": ROLE_NAME,
            "AssumeRolePolicyDocument": json.dumps(TRUST),
            "Description": "Runs endpoints of gptj-serve",
        }
        actions.append(Action("iam", "create_role", request, "the endpoint's role"))
    before = None if actions else _policy_of(aws, endpoint)
    if before == policy:
        return RoleChange()
    actions.append(_put(aws, endpoint, policy, "what the endpoint may do"))
    undo = _delete(aws, endpoint) if before is None else _put(aws, endpoint, before, "as it was before")
    return RoleChange(tuple(actions), (undo,))


def removal_actions(aws: Aws, endpoint: str) -> list[Action]:
    """The calls that take an endpoint's policy out of the role; none if there is none.

    Raises:
        ClientError: AWS refuses to tell.
    """
    return [] if _policy_of(aws, endpoint) is None else [_delete(aws, endpoint)]


def _put(aws: Aws, endpoint: str, policy: Mapping[str, Any], note: str) -> Action:
    request = {**_key(aws, endpoint), "PolicyDocument": json.dumps(policy)}
    return Action("iam", "put_role_policy", request, note)


def _delete(aws: Aws, endpoint: str) -> Action:
    return Action("iam", "delete_role_policy", _key(aws, endpoint), "what the endpoint might do")


def _key(aws: Aws, endpoint: str) -> dict[str, str]:
    return {"RoleName": ROLE_NAME, "PolicyName": policy_name(endpoint, aws.region)}


def _policy_of(aws: Aws, endpoint: str) -> Any:
    try:
        return aws.client("iam").get_role_policy(**_key(aws, endpoint))["PolicyDocument"]
    except ClientError as error:
        if is_missing(error):
            return None
        raise
