"""An account that ``scripts/deploy`` can work in, and how it is called there."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from botocore.client import BaseClient
from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.endpoint.lookup import Resources, find_resources
from gptj_serve.aws.iam.roles import TRUST
from support.aws.permission_checks import CHANGES
from support.aws.run_commands import Result, call

REPOSITORY = "gptj-serve"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
BUCKET = "models"
DATA = f"s3://{BUCKET}/gpt-j-6b/"
ROLE = "arn:aws:iam::123456789012:role/test"
SETTINGS = {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "n_layer": 28}


def push_image(aws: Aws, tag: str, media_type: str = MANIFEST) -> str:
    """Put an image into ECR; its address with digest."""
    ecr = aws.client("ecr")
    if not ecr.describe_repositories()["repositories"]:
        ecr.create_repository(repositoryName=REPOSITORY)
    digest = f"sha256:{hashlib.sha256(tag.encode()).hexdigest()}"
    manifest = json.dumps({"schemaVersion": 2, "mediaType": media_type, "note": tag, "layers": []})
    ecr.put_image(repositoryName=REPOSITORY, imageManifest=manifest, imageTag=tag, imageDigest=digest)
    registry = f"123456789012.dkr.ecr.{aws.region}.amazonaws.com"
    return f"{registry}/{REPOSITORY}@{digest}"


def upload(aws: Aws, config: Mapping[str, Any] = SETTINGS, prefix: str = "gpt-j-6b/") -> None:
    """Put a model into S3, and make the role that endpoints of the tests run with."""
    s3 = aws.client("s3")
    if not s3.list_buckets()["Buckets"]:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": aws.region})
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}config.json", Body=json.dumps(config))
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}model.safetensors", Body=b"x" * 1000)
    make_role(aws, "test")


def make_role(aws: Aws, name: str, service: str = "sagemaker.amazonaws.com") -> None:
    """An execution role, unless it is there."""
    trust = json.dumps(TRUST).replace("sagemaker.amazonaws.com", service)
    with contextlib.suppress(ClientError):
        aws.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)


def deploy(image: str, *arguments: str, data: str = DATA, role: str | None = ROLE) -> Result:
    """Run ``scripts/deploy`` in this process."""
    with_role = ("--role", role) if role else ()
    return call("deploy", "--image", image, "--model-data", data, *with_role, *arguments)


NOTHING = {
    "status": None,
    "config": None,
    "configs": [],
    "models": [],
    "alarms": [],
    "all configs": 0,
    "all models": 0,
}
"""`state` when nothing is left."""


def state(aws: Aws, name: str = "gpt-j") -> dict[str, Any]:
    """What there is of an endpoint, in a form to compare."""
    found: Resources = find_resources(aws.client("sagemaker"), aws.client("cloudwatch"), name)
    endpoint = found.endpoint or {}
    return {
        "status": endpoint.get("EndpointStatus"),
        "config": endpoint.get("EndpointConfigName"),
        "configs": sorted(found.configs),
        "models": sorted(found.models),
        "alarms": sorted(alarm["AlarmName"] for alarm in found.alarms),
        "all configs": len(aws.client("sagemaker").list_endpoint_configs()["EndpointConfigs"]),
        "all models": len(aws.client("sagemaker").list_models()["Models"]),
    }


class FakeTime:
    """A clock whose time passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


@contextmanager
def failing(operation: str, code: str, message: str, times: int = 1, skip: int = 0) -> Iterator[None]:
    """Inside, the first calls of an operation (after those to skip) are refused."""
    original = BaseClient._make_api_call
    outcomes = iter([False] * skip + [True] * times)

    def refuse(self: Any, name: str, request: Mapping[str, Any]) -> Any:
        if name == operation and next(outcomes, False):
            raise ClientError({"Error": {"Code": code, "Message": message}}, operation)
        return original(self, name, request)

    with patch.object(BaseClient, "_make_api_call", refuse):
        yield


@contextmanager
def cut_off(after: int, by: type[BaseException]) -> Iterator[None]:
    """Inside, an exception comes when so many calls have changed something: the answer gets lost."""
    original = BaseClient._make_api_call
    left = [after]

    def count(self: Any, operation: str, request: Mapping[str, Any]) -> Any:
        answer = original(self, operation, request)
        if operation.startswith(CHANGES):
            left[0] -= 1
            if left[0] == 0:
                raise by
        return answer

    with patch.object(BaseClient, "_make_api_call", count):
        yield


@contextmanager
def answers_lost() -> Iterator[None]:
    """Inside, every call that changes something is made twice, as botocore does when an answer gets lost."""
    original = BaseClient._make_api_call

    def twice(self: Any, operation: str, request: Mapping[str, Any]) -> Any:
        if operation.startswith(CHANGES):
            original(self, operation, request)
        return original(self, operation, request)

    with patch.object(BaseClient, "_make_api_call", twice):
        yield
