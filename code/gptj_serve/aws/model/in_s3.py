"""Looks at the model's files in S3, as far as deploying has to know them: size, kind, dimensions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.s3 import S3Url
from gptj_serve.aws.machines.fit import GPT_J_6B
from gptj_serve.aws.model import manifest
from gptj_serve.errors import StartupError
from gptj_serve.models.architecture import Architecture
from gptj_serve.models.config import CONFIG
from gptj_serve.models.families import read_architecture
from gptj_serve.models.near import ADAPTER

ARCHIVE = ".tar.gz"
ASSUMED_BYTES = 12_200_000_000
"""The size of GPT-J-6B in FP16, which is assumed where the files cannot be looked at."""

MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelData:
    """What is known about the model's files.

    Attributes:
        uri: A prefix that ends with "/", or an archive.
        num_bytes: Size of all files.
        fingerprint: Changes when the files do; None if they could not be read.
        config: The model's dimensions; None if they are not known.
        kms_key: ARN of the files' KMS key; None for S3's own key, or if the key is not known.
    """

    uri: str
    num_bytes: int
    fingerprint: str | None
    config: Architecture | None
    kms_key: str | None = None

    @property
    def is_archive(self) -> bool:
        """Whether it is one ``model.tar.gz`` instead of files under a prefix."""
        return self.uri.endswith(ARCHIVE)


def parse_place(uri: str) -> S3Url:
    """Read where the model is: an archive, or a prefix, which gets its "/".

    Raises:
        UsageError: It is no S3 address.
    """
    url = S3Url.parse(uri, "--model-data")
    return url if url.key.endswith(ARCHIVE) else url.as_prefix()


def look(aws: Aws, uri: str, console: Console) -> ModelData:
    """Look at the model's files.

    The user may lack the permission to read them while the endpoint's role has it. Then that is said, and
    GPT-J-6B is assumed.

    Raises:
        CommandError: There are no files, or they are no model that is served.
    """
    url = parse_place(uri)
    s3, full_uri, bucket, key = aws.client("s3"), str(url), url.bucket, url.key
    try:
        _check_region(s3, bucket, aws.region)
        objects = _list(s3, bucket, key)
        data = _summarise(s3, full_uri, bucket, objects)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("403", "AccessDenied"):
            console.progress(f"{full_uri} may not be read from here: GPT-J-6B in FP16 is assumed.")
            return ModelData(full_uri, ASSUMED_BYTES, None, None)
        if code in ("404", "NoSuchBucket"):
            raise CommandError(f"--model-data {full_uri}: there is no bucket {bucket}") from error
        raise
    if not data.is_archive and not any(item["Key"] == key + manifest.NAME for item in objects):
        console.progress(
            f"{full_uri} has no {manifest.NAME}, with which scripts/upload-model ends: is it whole?"
        )
    return data


def _check_region(s3: Any, bucket: str, region: str) -> None:
    where = s3.head_bucket(Bucket=bucket).get("BucketRegion") or region
    if where != region:
        raise CommandError(
            f"--model-data: {bucket} is in {where}, the endpoint in {region}; SageMaker wants both in one",
            f"upload the model to a bucket in {region}, or pass --region {where}",
        )


def _list(s3: Any, bucket: str, key: str) -> list[dict[str, Any]]:
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
    return [item for page in pages for item in page.get("Contents", [])]


def _summarise(s3: Any, uri: str, bucket: str, objects: Sequence[dict[str, Any]]) -> ModelData:
    if uri.endswith(ARCHIVE):
        objects = [item for item in objects if uri.endswith(item["Key"])]
    if not objects:
        raise CommandError(f"--model-data {uri}: nothing is there", "scripts/upload-model puts a model there")
    folders = [item["Key"] for item in objects if item["Key"].endswith("/")]
    if folders:
        raise CommandError(
            f"--model-data {uri}: {folders[0]} is an empty object that stands for a folder; SageMaker's "
            "download fails over it",
            f"aws s3 rm s3://{bucket}/{folders[0]}",
        )
    if uri.endswith(ARCHIVE):
        config, key = None, s3.head_object(Bucket=bucket, Key=objects[0]["Key"]).get("SSEKMSKeyId")
    else:
        config, key = _read_config(s3, uri, bucket, objects)
    return ModelData(uri, sum(item["Size"] for item in objects), _fingerprint(objects), config, key)


def _read_config(
    s3: Any, uri: str, bucket: str, objects: Sequence[dict[str, Any]]
) -> tuple[Architecture, str | None]:
    """The model's dimensions, and the KMS key that they are encrypted with."""
    keys = [item["Key"] for item in objects if item["Key"].rsplit("/", 1)[-1] == CONFIG]
    if not keys and any(item["Key"].rsplit("/", 1)[-1] == ADAPTER for item in objects):
        raise CommandError(
            f"--model-data {uri}: an adapter, not a whole model, and adapters are not served by themselves",
            "merge it into its model first; scripts/upload-model DIRECTORY says how, and uploads the result",
        )
    if not keys:
        raise CommandError(
            f"--model-data {uri}: there is no {CONFIG}", "give the prefix that scripts/upload-model printed"
        )
    # the server also takes the nearest
    key = min(keys, key=lambda one: (one.count("/"), one))
    answer = s3.get_object(Bucket=bucket, Key=key)
    body = answer["Body"].read(MAX_CONFIG_BYTES)
    try:
        raw = json.loads(body)
        if not isinstance(raw, dict):
            raise ValueError("not an object")
        return read_architecture(raw, Path(CONFIG)), answer.get("SSEKMSKeyId")
    except (ValueError, StartupError) as error:
        raise CommandError(f"--model-data: s3://{bucket}/{key}: {error}") from error


def _fingerprint(objects: Sequence[dict[str, Any]]) -> str:
    # every upload writes the manifest anew, even if nothing else has changed
    files = (item for item in objects if item["Key"].rsplit("/", 1)[-1] != manifest.NAME)
    lines = sorted(f"{item['Key']} {item['Size']} {item['ETag']}" for item in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def config_or_default(data: ModelData) -> Architecture:
    """The model's dimensions, or GPT-J-6B's if they are not known."""
    return data.config or GPT_J_6B
