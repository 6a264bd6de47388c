"""The role that an endpoint runs with: what it may do, and making it when asked to."""

import json
from collections.abc import Mapping
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


def policy_name(endpoint: str) -> str:
    """Name of the policy that an endpoint has in the role."""
    return f"gptj-serve-{endpoint}"


def role_actions(aws: Aws, endpoint: str, policy: Mapping[str, Any]) -> list[Action]:
    """The calls that make the role, or complete it; none if it is right already."""
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
    if actions or _policy_of(iam, endpoint) != policy:
        request = {
            "RoleName": ROLE_NAME,
            "PolicyName": policy_name(endpoint),
            "PolicyDocument": json.dumps(policy),
        }
        actions.append(Action("iam", "put_role_policy", request, "what the endpoint may do"))
    return actions


def _policy_of(iam: Any, endpoint: str) -> Any:
    try:
        return iam.get_role_policy(RoleName=ROLE_NAME, PolicyName=policy_name(endpoint))["PolicyDocument"]
    except ClientError as error:
        if is_missing(error):
            return None
        raise
