"""The least permissions that each command needs, as data.

In the tests, a command can make no call that is not allowed here, and what is allowed but never called is
reported.
"""

from dataclasses import replace
from typing import Any

from gptj_serve.aws.iam.policies import (
    ALARM,
    ANSWERS,
    ANSWERS_BUCKET,
    BUCKET,
    COMPONENT,
    COMPONENTS,
    CONFIG,
    CONFIGS,
    ENDPOINT,
    KEY,
    LOGS,
    MODEL,
    MODELS,
    OBJECTS,
    OUR_ROLE,
    REPOSITORY,
    ROLE,
    SCALING,
    SCALING_ROLE,
    TARGET_TRACKING,
    Grant,
    Scope,
    execution_policy,
    policy,
)
from gptj_serve.aws.iam.roles import TRUST

WHAT_EXISTS = (
    Grant(("sagemaker:DescribeEndpoint",), ENDPOINT),
    Grant(("sagemaker:DescribeEndpointConfig",), CONFIG),
    Grant(("sagemaker:ListModels", "sagemaker:ListEndpointConfigs")),
    Grant(("sagemaker:ListTags",), ENDPOINT + MODEL + CONFIG),
    Grant(("cloudwatch:DescribeAlarms",)),
    Grant(("cloudwatch:ListTagsForResource",), ALARM),
)
"""The permissions of `lookup.find_resources`."""

_DEPLOY = (
    Grant(("ecr:DescribeImages",), REPOSITORY),
    Grant(("s3:ListBucket",), BUCKET),
    Grant(("s3:GetObject",), OBJECTS),
    Grant(("kms:Decrypt",), KEY, calls=False),
    Grant(("iam:GetRole",), ROLE),
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

_PUSH = (
    Grant(("ecr:GetAuthorizationToken",)),
    Grant(
        (
            "ecr:DescribeRepositories",
            "ecr:CreateRepository",
            "ecr:GetLifecyclePolicy",
            "ecr:PutLifecyclePolicy",
            "ecr:ListTagsForResource",
            "ecr:TagResource",
            "ecr:BatchGetImage",
        ),
        REPOSITORY,
    ),
    # docker makes these calls itself
    Grant(
        (
            "ecr:BatchCheckLayerAvailability",
            "ecr:InitiateLayerUpload",
            "ecr:UploadLayerPart",
            "ecr:CompleteLayerUpload",
            "ecr:PutImage",
        ),
        REPOSITORY,
        calls=False,
    ),
)

_UPLOAD_MODEL = (
    Grant(
        (
            "s3:ListBucket",
            "s3:ListBucketMultipartUploads",
            "s3:CreateBucket",
            "s3:GetBucketPublicAccessBlock",
            "s3:PutBucketPublicAccessBlock",
        ),
        BUCKET,
    ),
    Grant(("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"), OBJECTS),
    # S3 makes these calls itself: it decrypts the parts of a file to put them together
    Grant(("kms:GenerateDataKey", "kms:Decrypt"), KEY, calls=False),
)

_SCALING_EXISTS = (
    Grant(("sagemaker:ListInferenceComponents",)),
    # components of others may be on the endpoint too
    Grant(("sagemaker:DescribeInferenceComponent",), COMPONENTS),
    Grant(
        ("application-autoscaling:DescribeScalableTargets", "application-autoscaling:DescribeScalingPolicies")
    ),
)
"""The further permissions of `inventory`."""

_SCALE = (
    Grant(("sagemaker:DescribeEndpoint",), ENDPOINT),
    Grant(("sagemaker:DescribeEndpointConfig",), CONFIG),
    Grant(("sagemaker:DescribeModel",), MODEL),
    Grant(("sagemaker:ListTags",), ENDPOINT + COMPONENTS),
    Grant(("cloudwatch:DescribeAlarms",)),
    Grant(("cloudwatch:ListTagsForResource",), ALARM),
    *_SCALING_EXISTS,
    Grant(
        (
            "application-autoscaling:RegisterScalableTarget",
            "application-autoscaling:DeregisterScalableTarget",
            "application-autoscaling:PutScalingPolicy",
            "application-autoscaling:DeleteScalingPolicy",
        ),
        SCALING,
    ),
    Grant(("cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"), ALARM),
    # Application Auto Scaling checks whether its caller may do what it is about to do
    Grant(("sagemaker:UpdateEndpointWeightsAndCapacities",), ENDPOINT, calls=False),
    Grant(("sagemaker:UpdateInferenceComponentRuntimeConfig",), COMPONENT, calls=False),
    Grant(
        ("cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"),
        TARGET_TRACKING,
        calls=False,
    ),
    Grant(("application-autoscaling:TagResource",), SCALING, calls=False),
    Grant(("cloudwatch:TagResource",), ALARM, calls=False),
    Grant(
        ("iam:CreateServiceLinkedRole",),
        SCALING_ROLE,
        {"StringLike": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"}},
        calls=False,
    ),
)

_STATUS = (
    Grant(("sagemaker:ListEndpoints",)),
    *WHAT_EXISTS,
    # the user may name any endpoint
    Grant(("sagemaker:DescribeEndpointConfig",), CONFIGS),
    Grant(("sagemaker:DescribeModel",), MODELS),
    *_SCALING_EXISTS,
)

_DELETE = (
    *WHAT_EXISTS,
    *_SCALING_EXISTS,
    Grant(("sagemaker:ListTags",), COMPONENTS),
    Grant(("sagemaker:DeleteEndpoint",), ENDPOINT),
    Grant(("sagemaker:DeleteEndpointConfig",), CONFIG),
    Grant(("sagemaker:DeleteModel",), MODEL),
    Grant(("sagemaker:DeleteInferenceComponent",), COMPONENT),
    Grant(("cloudwatch:DeleteAlarms",), ALARM),
    Grant(("iam:GetRole", "iam:GetRolePolicy", "iam:DeleteRolePolicy"), OUR_ROLE),
    Grant(
        ("application-autoscaling:DeregisterScalableTarget", "application-autoscaling:DeleteScalingPolicy"),
        SCALING,
    ),
)

_DELETE_ALL = (
    Grant(("sagemaker:DescribeModel",), MODELS),  # it looks whether others use the same
    Grant(("s3:ListBucket",), BUCKET),
    Grant(("s3:GetObject", "s3:DeleteObject"), OBJECTS),
    Grant(("kms:Decrypt",), KEY, calls=False),
    Grant(
        (
            "ecr:DescribeRepositories",
            "ecr:ListTagsForResource",
            "ecr:GetLifecyclePolicy",
            "ecr:DeleteRepository",
        ),
        REPOSITORY,
    ),
)

_INVOKE_ASYNC = (
    Grant(("sagemaker:InvokeEndpointAsync",), ENDPOINT),
    Grant(("sagemaker:DescribeEndpointConfig",), CONFIGS),
    Grant(("s3:GetObject", "s3:PutObject", "s3:DeleteObject"), ANSWERS),
    # without this permission, what does not exist yet looks forbidden
    Grant(("s3:ListBucket",), ANSWERS_BUCKET, calls=False),
)

COMMANDS: dict[str, tuple[Grant, ...]] = {
    "push": _PUSH,
    "upload-model": _UPLOAD_MODEL,
    "deploy": _DEPLOY,
    "deploy --create-role": (
        Grant(("iam:GetRole", "iam:CreateRole"), OUR_ROLE),
        Grant(("iam:TagRole",), OUR_ROLE, calls=False),
        Grant(("iam:GetRolePolicy", "iam:PutRolePolicy", "iam:DeleteRolePolicy"), OUR_ROLE),
    ),
    "deploy --to-zero": (
        Grant(
            (
                "sagemaker:DescribeInferenceComponent",
                "sagemaker:CreateInferenceComponent",
                "sagemaker:UpdateInferenceComponent",
                "sagemaker:DeleteInferenceComponent",
            ),
            COMPONENT + ENDPOINT + MODEL,
        ),
        Grant(("sagemaker:ListTags",), COMPONENT),
        Grant(("sagemaker:AddTags",), COMPONENT, calls=False),
    ),
    "invoke": (
        Grant(
            ("sagemaker:InvokeEndpoint", "sagemaker:InvokeEndpointWithResponseStream"), ENDPOINT + COMPONENTS
        ),
        Grant(("sagemaker:DescribeEndpoint",), ENDPOINT),
        Grant(("sagemaker:ListInferenceComponents",)),
    ),
    "invoke --async": _INVOKE_ASYNC,
    "scale": _SCALE,
    "status": _STATUS,
    "delete": _DELETE,
    "delete --all": _DELETE_ALL,
}
"""The permissions by command; a name with an option has what that option adds. ``build`` needs none."""


def documents(scope: Scope, command: str | None = None) -> dict[str, Any]:
    """Every policy by command, and the execution role's two policies; or only those of one command.

    Raises:
        KeyError: There is no such command.
    """
    role = {"trust": dict(TRUST), "permissions": execution_policy(scope)}
    # without a name, status shows every endpoint
    scopes = {"status": replace(scope, name="*")}
    everything = {name: policy(grants, scopes.get(name, scope)) for name, grants in COMMANDS.items()}
    everything |= {"execution-role": role}
    return everything if command is None else {command: everything[command]}
