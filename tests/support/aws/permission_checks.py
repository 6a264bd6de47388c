"""What the commands ask AWS for, held against what their policies allow and against whose it is.

Every command that a test runs in its own process is watched (`watched`): each call that it makes, and each
that it shows as its plan, must be allowed on its resources by the policies that ``--print-iam`` prints for
the same options; what the endpoint then does in its role's name must be allowed to the role; and what is
changed must be ours. A call's resources follow from the members that name them (`_ARNS`), whichever it is.
"""

import argparse
import fnmatch
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

from botocore import xform_name
from botocore.client import BaseClient
from botocore.session import get_session
from moto.cloudwatch.models import cloudwatch_backends
from moto.ecr.models import ecr_backends
from moto.iam.models import iam_backends
from moto.s3.models import FakeDeleteMarker, s3_backends
from moto.sagemaker.models import sagemaker_backends

from gptj_serve.aws.common.console import Console
from gptj_serve.aws.endpoint.deploying import options as deploy_options
from gptj_serve.aws.endpoint.lookup import TAG
from gptj_serve.aws.iam.grants import COMMANDS, documents
from gptj_serve.aws.iam.print_policies import scope_of
from gptj_serve.aws.iam.roles import TAG as ROLE_TAG
from gptj_serve.aws.image.repository import TAG as REPOSITORY_TAG
from gptj_serve.aws.model.manifest import NAME as MANIFEST
from gptj_serve.aws.model.transfer import SHA256
from support.aws.moto_components import components

ACCOUNT = "123456789012"
Call = tuple[str, str]
"""Service and operation, as botocore names them."""

NAMED_OTHERWISE = {
    ("s3", "HeadBucket"): "s3:ListBucket",
    ("s3", "ListObjectsV2"): "s3:ListBucket",
    ("s3", "HeadObject"): "s3:GetObject",
    ("s3", "CreateMultipartUpload"): "s3:PutObject",
    ("s3", "UploadPart"): "s3:PutObject",
    ("s3", "CompleteMultipartUpload"): "s3:PutObject",
    ("s3", "ListMultipartUploads"): "s3:ListBucketMultipartUploads",
    ("s3", "DeleteObjects"): "s3:DeleteObject",
    ("s3", "GetPublicAccessBlock"): "s3:GetBucketPublicAccessBlock",
    ("s3", "PutPublicAccessBlock"): "s3:PutBucketPublicAccessBlock",
}
NAMED_OTHERWISE |= {
    ("sagemaker-runtime", operation): f"sagemaker:{operation}"
    for operation in ("InvokeEndpoint", "InvokeEndpointAsync", "InvokeEndpointWithResponseStream")
}
NEEDS_NOTHING = {("sts", "GetCallerIdentity")}

CHANGES = ("Create", "Put", "Update", "Delete", "Register", "Deregister", "Tag", "Add", "Abort", "Complete")
"""What the names of calls that change something begin with."""


@dataclass(frozen=True)
class Request:
    """One call, made or planned.

    Attributes:
        service: As botocore names it.
        operation: The same.
        members: Of the request.
        region: Where.
    """

    service: str
    operation: str
    members: Mapping[str, Any]
    region: str

    @property
    def permission(self) -> str:
        """What IAM calls it."""
        named = (self.service, self.operation)
        return NAMED_OTHERWISE.get(named, f"{self.service}:{self.operation}")


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """The calls of AWS that are made inside."""
    with _recorded() as calls:
        named: list[Call] = []
        yield named
        named += [(one.service, one.operation) for one in calls]


@contextmanager
def _recorded(check: Any = None) -> Iterator[list[Request]]:
    calls: list[Request] = []
    original = BaseClient._make_api_call

    def record(self: Any, operation: str, members: Mapping[str, Any]) -> Any:
        made = Request(self.meta.service_model.service_name, operation, members, self.meta.region_name)
        calls.append(made)
        if check:
            check(made)
        return original(self, operation, members)

    with patch.object(BaseClient, "_make_api_call", record):
        yield calls


def needed(calls: Iterable[Call]) -> set[str]:
    """The permissions for some calls."""
    return {NAMED_OTHERWISE.get(one, f"{one[0]}:{one[1]}") for one in calls if one not in NEEDS_NOTHING}


def granted(*names: str) -> set[str]:
    """The calls that the policies of these names allow."""
    given = (grant for name in names for grant in COMMANDS[name] if grant.calls)
    return {action for grant in given for action in grant.actions}


@contextmanager
def watched(module: str, argv: Sequence[str]) -> Iterator[None]:
    """Inside, a command may do no more than the policies for its options say, and change what is ours."""
    problems: list[str] = []

    def look(made: Request) -> None:
        if made.operation.startswith(CHANGES) and (problem := _whose(made)):
            problems.append(problem)

    with _planned() as planned, _recorded(look) as calls:
        yield
    if not (calls or planned):
        return
    options = _options(module, argv)
    policies, role = printed(module, options)
    for made in (*calls, *planned):
        for permission, resource, context in _needs(made):
            if not allows(policies, permission, resource, context):
                problems.append(f"--print-iam allows no {permission} on {resource}")
        if made.operation.startswith(CHANGES):
            for permission, resource in _role_needs(made):
                if not allows([role], permission, resource):
                    problems.append(f"the execution role may not do {permission} on {resource}")
    problems += [problem for made in planned if (problem := _whose(made))]
    assert not problems, f"{module} {' '.join(argv)}:\n" + "\n".join(sorted(set(problems)))


@contextmanager
def _planned() -> Iterator[list[Request]]:
    """The calls that a dry run shows, whether as JSON or not."""
    plan: list[Request] = []
    original = Console.result

    def result(self: Console, fields: Mapping[str, Any], text: str) -> None:
        shown = [one for value in fields.values() if isinstance(value, list) for one in value]
        for one in shown:
            if isinstance(one, dict) and {"service", "operation", "request"} <= one.keys():
                names = _operation_names(one["service"])
                plan.append(Request(one["service"], names[one["operation"]], one["request"], "eu-west-1"))
        original(self, fields, text)

    with patch.object(Console, "result", result):
        yield plan


@cache
def _operation_names(service: str) -> dict[str, str]:
    return {xform_name(name): name for name in get_session().get_service_model(service).operation_names}


# policies


def printed(module: str, options: argparse.Namespace) -> tuple[list[Any], Any]:
    """What ``scripts/deploy --print-iam`` prints: a command's policies, and the role's."""
    command = module.replace("_", "-")
    scope = scope_of(options, "aws", options.region or "*", "*", options.kms_key)
    document = documents(scope)
    names = [name for name in COMMANDS if name.split()[0] == command]
    with_options = {f"--{key.replace('_', '-')}" for key, value in vars(options).items() if value}
    with_options |= {"--async"} if getattr(options, "is_async", False) else set()
    used = [name for name in names if set(name.split()[1:]) <= with_options]
    return [document[name] for name in used], document["execution-role"]["permissions"]


def _options(module: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of ``scripts/deploy`` that say the same as a command's own."""
    if module == "deploy":
        return deploy_options.parser().parse_args(argv)
    parser = importlib.import_module(f"gptj_serve.aws.{module}")._parser()
    given = parser.parse_intermixed_args(argv) if module == "invoke" else parser.parse_args(argv)
    options = deploy_options.parser().parse_args([])
    words = getattr(given, "words", None)
    named = _endpoint_of(words, given) if words is not None else getattr(given, "name", None)
    options.name = named or options.name
    for key in ("region", "kms_key", "all", "is_async"):
        setattr(options, key, getattr(given, key, None))
    if to := getattr(given, "to", None):
        options.model_data = to
    if repository := getattr(given, "repository", None):
        options.image = f"{ACCOUNT}.dkr.ecr.{options.region or 'eu-west-1'}.amazonaws.com/{repository}"
    return options


def _endpoint_of(words: Sequence[str], given: argparse.Namespace) -> str:
    num_texts = 0 if given.body is not None else 1
    return words[0] if len(words) > num_texts else "gpt-j"


def allows(
    policies: Iterable[Mapping[str, Any]],
    permission: str,
    resource: str,
    context: Mapping[str, str] | None = None,
) -> bool:
    """Whether one of the policies allows something, as IAM evaluates them: wildcards, one kind of condition.

    Args:
        policies: Documents with statements that allow.
        permission: "service:Action".
        resource: An ARN; "*" for what knows no resources.
        context: Condition keys that are known.
    """
    statements = [one for document in policies for one in document["Statement"]]
    return any(
        any(_matches(permission, action) for action in one["Action"])
        and any(_matches(resource, arn) for arn in one["Resource"])
        and _holds(one.get("Condition", {}), context or {})
        for one in statements
    )


def _matches(value: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(value, pattern.replace("[", "[[]"))


def _holds(conditions: Mapping[str, Any], context: Mapping[str, str]) -> bool:
    return all(
        _matches(context.get(key, ""), wanted)
        for operator in conditions.values()
        for key, wanted in operator.items()
    )


# what a call needs

_ARNS = {
    "sagemaker": {
        "EndpointName": "endpoint/{}",
        "EndpointConfigName": "endpoint-config/{}",
        "ModelName": "model/{}",
        "InferenceComponentName": "inference-component/{}",
    },
    "cloudwatch": {"AlarmName": "alarm:{}", "AlarmNames": "alarm:{}"},
    "iam": {"RoleName": "role/{}"},
    "ecr": {"repositoryName": "repository/{}", "repositoryNames": "repository/{}"},
    "application-autoscaling": {"ResourceId": "scalable-target/{}"},
    "logs": {"logGroupName": "log-group:{}:log-stream:x"},
}
"""The rest of an ARN, by the member of a request that names it."""

_NO_RESOURCE = ("Describe", "List")
"""Calls of Application Auto Scaling that begin so know no resources."""


def arns(made: Request) -> list[str]:
    """What a call is about; "*" where it names nothing."""
    service = made.service.removesuffix("-runtime")
    members = {**made.members, **made.members.get("Specification", {})}
    if service == "s3":
        return _objects(members)
    given = [members[key] for key in ("ResourceArn", "ResourceARN", "resourceArn") if key in members]
    if given:
        return given
    if service == "application-autoscaling" and made.operation.startswith(_NO_RESOURCE):
        return ["*"]
    account = members.get("registryId", ACCOUNT)
    start = f"arn:aws:{service}:{'' if service == 'iam' else made.region}:{account}:"
    found = []
    for member, pattern in _ARNS.get(service, {}).items():
        names = members.get(member, [])
        found += [start + pattern.format(name) for name in ([names] if isinstance(names, str) else names)]
    if service == "iam":
        there = {one.name: one.arn for one in iam_backends[ACCOUNT]["aws"].roles.values()}
        found = [there.get(arn.rpartition("/")[2], arn) for arn in found]  # a name does not tell the path
    if made.operation in ("ListInferenceComponents", "GetAuthorizationToken"):
        return ["*"]
    return found or ["*"]


def _objects(members: Mapping[str, Any]) -> list[str]:
    bucket = f"arn:aws:s3:::{members['Bucket']}"
    keys = [one["Key"] for one in members.get("Delete", {}).get("Objects", ())]
    keys += [members["Key"]] if "Key" in members else []
    return [f"{bucket}/{key}" for key in keys] or [bucket]


def _needs(made: Request) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Permissions of a call, and those that AWS asks for besides."""
    if (made.service, made.operation) in NEEDS_NOTHING:
        return
    about = arns(made)
    for arn in about:
        yield made.permission, arn, {}
    members = made.members
    tagging = {"sagemaker": "AddTags", "iam": "TagRole"}.get(made.service, "TagResource")
    if (members.get("Tags") or members.get("tags")) and made.operation != "TagResource":
        yield f"{made.service}:{tagging}", about[0], {}
    if role := members.get("ExecutionRoleArn"):
        yield "iam:PassRole", role, {"iam:PassedToService": "sagemaker.amazonaws.com"}
    if key := members.get("SSEKMSKeyId"):
        for action in ("kms:GenerateDataKey", "kms:Decrypt"):
            yield action, _key_arn(key, made.region), _alias(key)
    if made.operation == "GetObject" and (key := _key_of(members)):
        yield "kms:Decrypt", _key_arn(key, made.region), _alias(key)
    if made.service == "application-autoscaling" and made.operation.startswith(("Register", "Put")):
        yield from _scaling_needs(made)


def _scaling_needs(made: Request) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """Application Auto Scaling asks whether its caller may do what it is about to do."""
    kind, name = made.members["ResourceId"].split("/")[:2]
    start = f"arn:aws:sagemaker:{made.region}:{ACCOUNT}:{kind}/{name}"
    change = {"endpoint": "UpdateEndpointWeightsAndCapacities"}.get(
        kind, "UpdateInferenceComponentRuntimeConfig"
    )
    yield f"sagemaker:{change}", start, {}
    if made.members.get("PolicyType") == "TargetTrackingScaling":
        yield (
            "cloudwatch:PutMetricAlarm",
            f"arn:aws:cloudwatch:{made.region}:{ACCOUNT}:alarm:TargetTracking-x",
            {},
        )


def _key_arn(key: str, region: str) -> str:
    if "alias/" in key:
        return f"arn:aws:kms:{region}:{ACCOUNT}:key/the-one-of-the-alias"
    return key if key.startswith("arn:") else f"arn:aws:kms:{region}:{ACCOUNT}:key/{key}"


def _alias(key: str) -> Mapping[str, str]:
    return {"kms:ResourceAliases": key[key.index("alias/") :]} if "alias/" in key else {}


def _key_of(members: Mapping[str, Any]) -> str | None:
    found = _object(members["Bucket"], members["Key"])
    return found.kms_key_id if found else None


def _role_needs(made: Request) -> Iterator[tuple[str, str]]:
    """What SageMaker does in the role's name because of a call."""
    members, log = made.members, f"arn:aws:logs:{made.region}:{ACCOUNT}:log-group:/aws/sagemaker"
    if container := members.get("PrimaryContainer"):
        registry = re.fullmatch(r"(\d+)\.dkr\.ecr\.([\w-]+)\.[^/]+/([^@:]+).*", container["Image"])
        assert registry, container
        account, region, repository = registry.groups()
        yield "ecr:GetAuthorizationToken", "*"
        for action in ("BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability"):
            yield f"ecr:{action}", f"arn:aws:ecr:{region}:{account}:repository/{repository}"
        yield from _reading(container["ModelDataSource"]["S3DataSource"]["S3Uri"], "config.json")
    if output := members.get("AsyncInferenceConfig", {}).get("OutputConfig"):
        for place in (output["S3OutputPath"], output["S3FailurePath"]):
            yield "s3:PutObject", f"{_s3_arn(place)}x.out"
        yield from _reading(f"{output['S3OutputPath'].rstrip('/')}/requests/", "x.json")
    if members.get("VpcConfig"):
        yield "ec2:CreateNetworkInterface", "*"
    rollback = members.get("DeploymentConfig", {}).get("AutoRollbackConfiguration", {})
    for alarm in rollback.get("Alarms", ()):
        arn = f"arn:aws:cloudwatch:{made.region}:{ACCOUNT}:alarm:{alarm['AlarmName']}"
        yield "cloudwatch:DescribeAlarms", arn
    kinds = {"CreateEndpoint": "Endpoints", "CreateInferenceComponent": "InferenceComponents"}
    if kind := kinds.get(made.operation):
        for action in ("CreateLogGroup", "CreateLogStream", "PutLogEvents"):
            yield f"logs:{action}", f"{log}/{kind}/{members['EndpointName']}:log-stream:x"
        yield "cloudwatch:PutMetricData", "*"


def _reading(uri: str, name: str) -> Iterator[tuple[str, str]]:
    arn = _s3_arn(uri)
    yield "s3:ListBucket", arn.partition("/")[0]
    yield "s3:GetObject", arn if uri.endswith(".tar.gz") else f"{arn}{name}"
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    found = _object(bucket, key if uri.endswith(".tar.gz") else f"{key}{name}")
    if found and found.kms_key_id:
        yield "kms:Decrypt", _key_arn(found.kms_key_id, "eu-west-1")


def _s3_arn(uri: str) -> str:
    return f"arn:aws:s3:::{uri.removeprefix('s3://')}"


# whose it is


def _whose(made: Request) -> str | None:
    """Why a call may not change what it is about; None if that is ours, or is made by it."""
    for arn in arns(made):
        if made.operation not in ("TagResource",) or made.service != "ecr":
            problem = _OWNERS.get(made.service, _nobody)(made, arn)
        else:
            problem = _repository(made, arn)
        if problem:
            return f"{made.operation} changes {arn}: {problem}"
    return None


def _nobody(_made: Request, _arn: str) -> str | None:
    return None


def _sagemaker(made: Request, arn: str) -> str | None:
    kind, _, name = arn.rpartition(":")[2].partition("/")
    backend = sagemaker_backends[ACCOUNT][made.region]
    if made.operation.startswith("CreateInferenceComponent") and kind in ("model", "inference-component"):
        return None
    found = {
        "endpoint": backend.endpoints,
        "endpoint-config": backend.endpoint_configs,
        "model": backend._models,
        "inference-component": components(region=made.region),
    }[kind].get(name)
    tags = found["Tags"] if isinstance(found, dict) else getattr(found, "tags", None)
    return _tagged(found, {one["Key"]: one["Value"] for one in tags or ()}, TAG)


def _alarm(made: Request, arn: str) -> str | None:
    backend, name = cloudwatch_backends[ACCOUNT][made.region], arn.partition(":alarm:")[2]
    return _tagged(backend.alarms.get(name), backend.list_tags_for_resource(arn), TAG)


def _role(_made: Request, arn: str) -> str | None:
    roles = {role.name: role for role in iam_backends[ACCOUNT]["aws"].roles.values()}
    found = roles.get(arn.rpartition("/")[2])
    tags = {one["Key"]: one["Value"] for one in found.tags} if found else {}
    return _tagged(found, tags, ROLE_TAG)


def _repository(made: Request, arn: str) -> str | None:
    backend, name = ecr_backends[ACCOUNT][made.region], arn.partition(":repository/")[2]
    found = backend.repositories.get(name)
    return _tagged(
        found, backend.tagger.get_tag_dict_for_resource(found.arn) if found else {}, REPOSITORY_TAG
    )


def _scaling(made: Request, arn: str) -> str | None:
    kind, name = arn.partition(":scalable-target/")[2].split("/")[:2]
    return _sagemaker(made, f"arn:aws:sagemaker:{made.region}:{ACCOUNT}:{kind}/{name}")


def _s3(made: Request, arn: str) -> str | None:
    bucket, _, key = arn.removeprefix("arn:aws:s3:::").partition("/")
    if not key:
        there = made.operation == "CreateBucket" and bucket in s3_backends[ACCOUNT]["aws"].buckets
        return "it is there already" if there else None
    found = _object(bucket, key)
    is_folder = found is not None and key.endswith("/") and found.size == 0
    if found is None or is_folder or SHA256 in found.metadata or f"x-amz-meta-{SHA256}" in found.metadata:
        return None
    folder = key.rpartition("/")[0]
    whole = _object(bucket, f"{folder}/{MANIFEST}")
    names = json.loads(whole.value)["files"] if whole and whole.value != b"{}" else {}
    archive = ["model.tar.gz"] if whole and b'"tar": true' in whole.value else []
    is_question = folder.endswith("/requests") or folder == "requests"
    is_ours = key.rpartition("/")[2] in (*names, *archive, MANIFEST) or is_question
    return None if is_ours else "it is not in the list of an upload of ours"


def _object(bucket: str, key: str) -> Any:
    found = s3_backends[ACCOUNT]["aws"].buckets.get(bucket)
    there = found.keys.get(key) if found else None
    return None if isinstance(there, FakeDeleteMarker) else there


def _tagged(found: Any, tags: Mapping[str, str], key: str) -> str | None:
    return None if found is None or key in tags else f"it has no tag {key}"


_OWNERS = {
    "sagemaker": _sagemaker,
    "cloudwatch": _alarm,
    "iam": _role,
    "ecr": _repository,
    "application-autoscaling": _scaling,
    "s3": _s3,
}
