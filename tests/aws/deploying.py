"""An account that ``scripts/deploy`` can work in, and how it is called there."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from botocore.client import BaseClient
from commands import Result, call

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.endpoints import Resources, find_resources

REPOSITORY = "gptj-serve"
BUCKET = "models"
DATA = f"s3://{BUCKET}/gpt-j-6b/"
ROLE = "arn:aws:iam::123456789012:role/test"
SETTINGS = {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], "n_layer": 28}


def push_image(aws: Aws, tag: str) -> str:
    """Put an image into ECR; its address with digest."""
    ecr = aws.client("ecr")
    if not ecr.describe_repositories()["repositories"]:
        ecr.create_repository(repositoryName=REPOSITORY)
    media_type = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = json.dumps(
        {"schemaVersion": 2, "mediaType": media_type, "config": {"digest": f"sha256:{tag}"}, "layers": []}
    )
    image = ecr.put_image(repositoryName=REPOSITORY, imageManifest=manifest, imageTag=tag)["image"]
    registry = f"123456789012.dkr.ecr.{aws.region}.amazonaws.com"
    return f"{registry}/{REPOSITORY}@{image['imageId']['imageDigest']}"


def upload(aws: Aws, config: Mapping[str, Any] = SETTINGS, prefix: str = "gpt-j-6b/") -> None:
    """Put a model into S3."""
    s3 = aws.client("s3")
    if not s3.list_buckets()["Buckets"]:
        s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": aws.region})
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}config.json", Body=json.dumps(config))
    s3.put_object(Bucket=BUCKET, Key=f"{prefix}model.safetensors", Body=b"x" * 1000)


def deploy(image: str, *arguments: str, data: str = DATA, role: str | None = ROLE) -> Result:
    """Run ``scripts/deploy`` in this process."""
    with_role = ("--role", role) if role else ()
    return call("deploy", "--image", image, "--model-data", data, *with_role, *arguments)


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


@contextmanager
def recorded() -> Iterator[list[tuple[str, str]]]:
    """The calls of AWS that are made inside: service and operation, as botocore names them."""
    calls: list[tuple[str, str]] = []
    original = BaseClient._make_api_call

    def record(self: Any, operation: str, request: Mapping[str, Any]) -> Any:
        calls.append((self.meta.service_model.service_name, operation))
        return original(self, operation, request)

    with patch.object(BaseClient, "_make_api_call", record):
        yield calls
