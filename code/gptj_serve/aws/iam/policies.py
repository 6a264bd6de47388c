"""Builds IAM policies: those of commands, and the one of the role that an endpoint runs with."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.iam.roles import ROLE_NAME


@dataclass(frozen=True, slots=True)
class Scope:
    """The resources that permissions are limited to; "*" is everything.

    Attributes:
        partition, region, account: Parts of ARNs.
        name: The endpoint's name.
        registry, registry_region: Account and region of the image's repository.
        repository: Name of the image's repository.
        bucket, prefix: Where the model's files are.
        key: KMS key that they are encrypted with: id, ARN or alias; None for S3's own key.
        role: ARN or name of the execution role; None for the one that ``--create-role`` makes.
        output: Prefix of asynchronous answers; None for a real-time endpoint.
        inputs: Prefixes of asynchronous requests that are not below that.
        in_vpc: Whether the containers are in a network of the account.
    """

    partition: str = "aws"
    region: str = "*"
    account: str = "*"
    name: str = "*"
    registry: str = "*"
    registry_region: str = "*"
    repository: str = "gptj-serve"
    bucket: str = "*"
    prefix: str = ""
    key: str | None = None
    role: str | None = None
    output: S3Url | None = None
    inputs: tuple[S3Url, ...] = ()
    in_vpc: bool = False

    def fill(self, resource: str) -> list[str]:
        """Fill in a resource's fields; gives one resource as a rule, none if there is none, and several where
        a name is ambiguous."""
        known = ("partition", "region", "account", "name", "repository", "bucket", "prefix")
        values = {field: getattr(self, field) for field in known}
        answers = self.output or S3Url("*", "")
        values |= {"answers": answers.bucket, "answers_prefix": answers.key}
        values |= {"registry": self.registry, "registry_region": self.registry_region}
        if resource == KEY[0]:
            return [self._key_arn] if self.key else []
        if resource == ROLE[0]:
            return self._role_arns
        return [resource.format(**values)]

    @property
    def key_condition(self) -> Mapping[str, Any] | None:
        """The condition for a key that is named by an alias, since policies name keys only by their ids."""
        if self.key is None or "alias/" not in self.key:
            return None
        alias = self.key[self.key.index("alias/") :]
        return {"ForAnyValue:StringEquals": {"kms:ResourceAliases": alias}}

    @property
    def _key_arn(self) -> str:
        key = self.key or ""
        if key.startswith("arn:") and self.key_condition is None:
            return key
        start = key.rpartition(":")[0] or f"arn:{self.partition}:kms:{self.region}:{self.account}"
        return f"{start}:key/{'*' if self.key_condition else key}"

    @property
    def _role_arns(self) -> list[str]:
        role = self.role or ROLE_NAME
        if role.startswith("arn:"):
            return [role]
        start = f"arn:{self.partition}:iam::{self.account}:role/"
        # a role that somebody else made may have a path, which its name does not show
        return [start + role] if role == ROLE_NAME else [start + role, f"{start}*/{role}"]


def check_key(key: str) -> str:
    """Check a KMS key's id, ARN or alias; returns it.

    Raises:
        UsageError: It is none of these.
    """
    name = r"(?:key/)?(?:mrk-)?[0-9a-f]{4,}[0-9a-f-]*|alias/[\w/-]+"
    if not re.fullmatch(rf"(?:arn:aws[a-z-]*:kms:[a-z0-9-]+:\d{{12}}:)?(?:{name})", key):
        raise UsageError(
            f"--kms-key {key}: no key of KMS; it looks like 1234abcd-12ab-34cd-56ef-1234567890ab, "
            "alias/NAME or arn:aws:kms:REGION:ACCOUNT:key/ID"
        )
    return key.removeprefix("key/")


@dataclass(frozen=True, slots=True)
class Grant:
    """Actions on resources; ``{…}`` are fields of `Scope`.

    Attributes:
        actions: The actions, as "service:Action".
        resources: ARNs; "*" where the action has no resources.
        condition: IAM's condition; None for always.
        calls: Whether the actions are calls of the same name. AWS checks the others during calls that are
            allowed otherwise: passing a role, tagging what is made.
    """

    actions: tuple[str, ...]
    resources: tuple[str, ...] = ("*",)
    condition: Mapping[str, Any] | None = None
    calls: bool = True


_SAGEMAKER = "arn:{partition}:sagemaker:{region}:{account}"
ENDPOINT = (_SAGEMAKER + ":endpoint/{name}",)
CONFIG = (_SAGEMAKER + ":endpoint-config/{name}-*",)
MODEL = (_SAGEMAKER + ":model/{name}-*",)
MODELS = (_SAGEMAKER + ":model/*",)
CONFIGS = (_SAGEMAKER + ":endpoint-config/*",)
COMPONENTS = (_SAGEMAKER + ":inference-component/*",)
COMPONENT = (_SAGEMAKER + ":inference-component/{name}*",)
SCALING = ("arn:{partition}:application-autoscaling:{region}:{account}:scalable-target/*",)
ALARM = ("arn:{partition}:cloudwatch:{region}:{account}:alarm:gptj-serve/{name}/*",)
TARGET_TRACKING = ("arn:{partition}:cloudwatch:{region}:{account}:alarm:TargetTracking-*",)
_SERVICE_ROLE = "role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com"
SCALING_ROLE = ("arn:{partition}:iam::{account}:" + _SERVICE_ROLE + "/*",)
REPOSITORY = ("arn:{partition}:ecr:{registry_region}:{registry}:repository/{repository}",)
BUCKET = ("arn:{partition}:s3:::{bucket}",)
OBJECTS = ("arn:{partition}:s3:::{bucket}/{prefix}*",)
ANSWERS = ("arn:{partition}:s3:::{answers}/{answers_prefix}*",)
ANSWERS_BUCKET = ("arn:{partition}:s3:::{answers}",)
ROLE = ("{role}",)
KEY = ("{key}",)
OUR_ROLE = (f"arn:{{partition}}:iam::{{account}}:role/{ROLE_NAME}",)
LOGS = tuple(
    f"arn:{{partition}}:logs:{{region}}:{{account}}:log-group:/aws/sagemaker/{kind}/{{name}}*"
    for kind in ("Endpoints", "InferenceComponents")
)


def policy(grants: Sequence[Grant], scope: Scope) -> dict[str, Any]:
    """An IAM policy that allows these grants and nothing else."""
    statements = []
    for grant in grants:
        resources = [arn for one in grant.resources for arn in scope.fill(one)]
        if not resources:
            continue
        statement: dict[str, Any] = {"Effect": "Allow", "Action": list(grant.actions), "Resource": resources}
        condition = scope.key_condition if grant.resources == KEY else grant.condition
        if condition:
            statement["Condition"] = dict(condition)
        statements.append(statement)
    return {"Version": "2012-10-17", "Statement": statements}


def execution_policy(scope: Scope) -> dict[str, Any]:
    """What the execution role must be allowed: pull the image, read the model, write logs and metrics, and
    look at the alarms that roll an update back, which SageMaker does in its name."""
    grants = [
        Grant(("ecr:GetAuthorizationToken",)),
        Grant(
            ("ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"), REPOSITORY
        ),
        Grant(("s3:ListBucket",), BUCKET),
        Grant(("s3:GetObject",), OBJECTS),
        Grant(("kms:Decrypt",), KEY),
        Grant(("cloudwatch:DescribeAlarms",), ALARM),
        Grant(
            ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"),
            LOGS,
        ),
        Grant(("cloudwatch:PutMetricData",)),
    ]
    if scope.output:
        grants.append(Grant(("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"), ANSWERS))
        grants.append(Grant(("s3:ListBucket",), ANSWERS_BUCKET))
    for place in scope.inputs:
        grants.append(Grant(("s3:GetObject",), (f"arn:{scope.partition}:s3:::{place.bucket}/{place.key}*",)))
        grants.append(Grant(("s3:ListBucket",), (f"arn:{scope.partition}:s3:::{place.bucket}",)))
    if scope.in_vpc:
        names = ("CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface")
        looks = ("NetworkInterfaces", "Vpcs", "DhcpOptions", "Subnets", "SecurityGroups")
        more = ("DeleteNetworkInterfacePermission", *(f"Describe{one}" for one in looks))
        grants.append(Grant(tuple(f"ec2:{one}" for one in (*names, *more))))
    return policy(grants, scope)
