"""The least that each command needs to be allowed, and the role that an endpoint runs with.

Each command's permissions are data: `COMMANDS`. A test compares them with the calls that the commands make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.roles import ROLE_NAME, TRUST


@dataclass(frozen=True, slots=True)
class Scope:
    """What permissions are limited to; "*" is everything.

    Attributes:
        partition, region, account: Parts of ARNs.
        name: The endpoint.
        repository: The image's.
        bucket, prefix: The model's files.
        role_arn: The execution role, None for the one that ``--create-role`` makes.
        output: Bucket and prefix of asynchronous answers, None for a real-time endpoint.
        in_vpc: The containers are in a network of the account's.
    """

    partition: str = "aws"
    region: str = "*"
    account: str = "*"
    name: str = "*"
    repository: str = "gptj-serve"
    bucket: str = "*"
    prefix: str = ""
    role_arn: str | None = None
    output: tuple[str, str] | None = None
    in_vpc: bool = False

    def fill(self, resource: str) -> str:
        """A resource with everything put in."""
        known = {field: getattr(self, field) for field in ("partition", "region", "account", "name")}
        role = self.role_arn or f"arn:{self.partition}:iam::{self.account}:role/{ROLE_NAME}"
        more = {"repository": self.repository, "bucket": self.bucket, "prefix": self.prefix, "role": role}
        return resource.format(**known, **more)


@dataclass(frozen=True, slots=True)
class Grant:
    """Actions on resources; ``{…}`` are fields of `Scope`.

    Attributes:
        actions: "service:Action".
        resources: ARNs; "*" where the action knows no resources.
        condition: IAM's, None for always.
        calls: Whether the actions are calls of the same name. The others are checked on the way by calls
            that are allowed otherwise: passing a role, tagging what is made.
    """

    actions: tuple[str, ...]
    resources: tuple[str, ...] = ("*",)
    condition: Mapping[str, Any] | None = None
    calls: bool = True


_SAGEMAKER = "arn:{partition}:sagemaker:{region}:{account}"
ENDPOINT = (_SAGEMAKER + ":endpoint/{name}",)
CONFIG = (_SAGEMAKER + ":endpoint-config/{name}-*",)
MODEL = (_SAGEMAKER + ":model/{name}-*",)
ALARM = ("arn:{partition}:cloudwatch:{region}:{account}:alarm:gptj-serve/{name}/*",)
REPOSITORY = ("arn:{partition}:ecr:{region}:{account}:repository/{repository}",)
BUCKET = ("arn:{partition}:s3:::{bucket}",)
OBJECTS = ("arn:{partition}:s3:::{bucket}/{prefix}*",)
ROLE = ("{role}",)
LOGS = ("arn:{partition}:logs:{region}:{account}:log-group:/aws/sagemaker/Endpoints/{name}*",)

WHAT_EXISTS = (
    Grant(("sagemaker:DescribeEndpoint",), ENDPOINT),
    Grant(("sagemaker:DescribeEndpointConfig",), CONFIG),
    Grant(("sagemaker:ListModels", "sagemaker:ListEndpointConfigs")),
    Grant(("sagemaker:ListTags",), MODEL + CONFIG),
    Grant(("cloudwatch:DescribeAlarms",)),
)
"""What `endpoints.find_resources` asks."""

_DEPLOY = (
    Grant(("ecr:DescribeImages",), REPOSITORY),
    Grant(("s3:ListBucket",), BUCKET),
    Grant(("s3:GetObject",), OBJECTS),
    *WHAT_EXISTS,
    Grant(("sagemaker:CreateModel", "sagemaker:DeleteModel"), MODEL),
    Grant(("sagemaker:CreateEndpointConfig", "sagemaker:DeleteEndpointConfig"), CONFIG),
    Grant(
        ("sagemaker:CreateEndpoint", "sagemaker:UpdateEndpoint", "sagemaker:DeleteEndpoint"),
        ENDPOINT + CONFIG,
    ),
    Grant(("sagemaker:AddTags",), MODEL + CONFIG + ENDPOINT, calls=False),
    Grant(
        ("iam:PassRole",),
        ROLE,
        {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        calls=False,
    ),
    Grant(("cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"), ALARM),
    Grant(("cloudwatch:TagResource",), ALARM, calls=False),
    Grant(("application-autoscaling:DescribeScalableTargets",)),
    Grant(("logs:DescribeLogStreams", "logs:GetLogEvents"), LOGS),
)

COMMANDS: dict[str, tuple[Grant, ...]] = {
    "deploy": _DEPLOY,
    "deploy --create-role": (
        Grant(("iam:GetRole", "iam:CreateRole", "iam:GetRolePolicy", "iam:PutRolePolicy"), ROLE),
    ),
}
"""Permissions by command; a name with an option holds what that option needs besides."""


def policy(grants: Sequence[Grant], scope: Scope) -> dict[str, Any]:
    """An IAM policy that allows this and nothing else."""
    statements = []
    for grant in grants:
        resources = [scope.fill(one) for one in grant.resources]
        statement: dict[str, Any] = {"Effect": "Allow", "Action": list(grant.actions), "Resource": resources}
        if grant.condition:
            statement["Condition"] = dict(grant.condition)
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}


def execution_policy(scope: Scope) -> dict[str, Any]:
    """What the execution role must be allowed: pull the image, read the model, write logs and metrics."""
    grants = [
        Grant(("ecr:GetAuthorizationToken",)),
        Grant(
            ("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"), REPOSITORY
        ),
        Grant(("s3:ListBucket",), BUCKET),
        Grant(("s3:GetObject",), OBJECTS),
        Grant(
            ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
            LOGS,
        ),
        Grant(("cloudwatch:PutMetricData",)),
    ]
    if scope.output:
        bucket, prefix = scope.output
        where = (f"arn:{scope.partition}:s3:::{bucket}/{prefix}*",)
        grants.append(Grant(("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"), where))
        grants.append(Grant(("s3:ListBucket",), (f"arn:{scope.partition}:s3:::{bucket}",)))
    if scope.in_vpc:
        names = ("CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface")
        looks = ("NetworkInterfaces", "Vpcs", "DhcpOptions", "Subnets", "SecurityGroups")
        more = ("DeleteNetworkInterfacePermission", *(f"Describe{one}" for one in looks))
        grants.append(Grant(tuple(f"ec2:{one}" for one in (*names, *more))))
    return policy(grants, scope)


def documents(scope: Scope, command: str | None = None) -> dict[str, Any]:
    """Every policy by command, and the execution role's two; or one command's alone.

    Raises:
        KeyError: There is no such command.
    """
    role = {"trust": dict(TRUST), "permissions": execution_policy(scope)}
    everything = {name: policy(grants, scope) for name, grants in COMMANDS.items()} | {"execution-role": role}
    return everything if command is None else {command: everything[command]}
