"""IAM policies as they are written here, and the one of the role that an endpoint runs with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptj_serve.aws.roles import ROLE_NAME
from gptj_serve.aws.s3 import S3Url


@dataclass(frozen=True, slots=True)
class Scope:
    """What permissions are limited to; "*" is everything.

    Attributes:
        partition, region, account: Parts of ARNs.
        name: The endpoint.
        repository: The image's.
        bucket, prefix: The model's files.
        role_arn: The execution role, None for the one that ``--create-role`` makes.
        output: Prefix of asynchronous answers, None for a real-time endpoint.
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
    output: S3Url | None = None
    in_vpc: bool = False

    def fill(self, resource: str) -> str:
        """A resource with everything put in."""
        known = {field: getattr(self, field) for field in ("partition", "region", "account", "name")}
        role = self.role_arn or f"arn:{self.partition}:iam::{self.account}:role/{ROLE_NAME}"
        more = {"repository": self.repository, "bucket": self.bucket, "prefix": self.prefix, "role": role}
        answers = self.output or S3Url("*", "")
        more |= {"answers": answers.bucket, "answers_prefix": answers.key}
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
MODELS = (_SAGEMAKER + ":model/*",)
COMPONENT = (_SAGEMAKER + ":inference-component/{name}*",)
SCALING = ("arn:{partition}:application-autoscaling:{region}:{account}:scalable-target/*",)
ALARM = ("arn:{partition}:cloudwatch:{region}:{account}:alarm:gptj-serve/{name}/*",)
TARGET_TRACKING = ("arn:{partition}:cloudwatch:{region}:{account}:alarm:TargetTracking-*",)
_SERVICE_ROLE = "role/aws-service-role/sagemaker.application-autoscaling.amazonaws.com"
SCALING_ROLE = ("arn:{partition}:iam::{account}:" + _SERVICE_ROLE + "/*",)
REPOSITORY = ("arn:{partition}:ecr:{region}:{account}:repository/{repository}",)
BUCKET = ("arn:{partition}:s3:::{bucket}",)
OBJECTS = ("arn:{partition}:s3:::{bucket}/{prefix}*",)
ANSWERS = ("arn:{partition}:s3:::{answers}/{answers_prefix}*",)
ANSWERS_BUCKET = ("arn:{partition}:s3:::{answers}",)
ROLE = ("{role}",)
OUR_ROLE = (f"arn:{{partition}}:iam::{{account}}:role/{ROLE_NAME}",)
LOGS = tuple(
    f"arn:{{partition}}:logs:{{region}}:{{account}}:log-group:/aws/sagemaker/{kind}/{{name}}*"
    for kind in ("Endpoints", "InferenceComponents")
)


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
        bucket = scope.output.bucket
        where = (f"arn:{scope.partition}:s3:::{bucket}/{scope.output.key}*",)
        grants.append(Grant(("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"), where))
        grants.append(Grant(("s3:ListBucket",), (f"arn:{scope.partition}:s3:::{bucket}",)))
    if scope.in_vpc:
        names = ("CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface")
        looks = ("NetworkInterfaces", "Vpcs", "DhcpOptions", "Subnets", "SecurityGroups")
        more = ("DeleteNetworkInterfacePermission", *(f"Describe{one}" for one in looks))
        grants.append(Grant(tuple(f"ec2:{one}" for one in (*names, *more))))
    return policy(grants, scope)
