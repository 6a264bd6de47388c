"""Addresses in S3, and the bucket that SageMaker's own tools use as well."""

import contextlib
import re
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError
from gptj_serve.aws.common.plan import Action

_BLOCKS = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
_BLOCKED = ",".join(f"{one}=true" for one in _BLOCKS)
_URL = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class S3Url:
    """The address of an object or of a prefix.

    Attributes:
        bucket: The bucket's name.
        key: The object's key, or the prefix; may be empty.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def as_prefix(self) -> "S3Url":
        """The same address as a prefix: its key ends with "/" unless it is empty."""
        is_whole = not self.key or self.key.endswith("/")
        return self if is_whole else S3Url(self.bucket, f"{self.key}/")

    @staticmethod
    def parse(text: str, option: str) -> "S3Url":
        """Read ``s3://BUCKET/KEY``.

        Args:
            text: What was given as an address.
            option: The option whose value it is, for the error.

        Raises:
            UsageError: The text is no such address.
        """
        found = _URL.fullmatch(text)
        if not found:
            raise UsageError(
                f"{option} {text}: not an S3 address; must be s3://BUCKET/KEY, BUCKET of 3 to 63 characters"
            )
        return S3Url(found[1], found[2] or "")


def default_bucket(aws: Aws) -> str:
    """``sagemaker-REGION-ACCOUNT``, the name that AWS's own SDK gives it."""
    return f"sagemaker-{aws.region}-{aws.account}"


def bucket_actions(aws: Aws, bucket: str, console: Console) -> list[Action]:
    """The calls that are needed before objects can be put into a bucket; usually there are none.

    Only the default bucket is ever made. Its name can be guessed, so it has to belong to this account. If it
    exists, it stays as it is, because SageMaker's own tools make it as well.

    Raises:
        CommandError: The bucket does not exist, is in another region, or belongs to somebody else.
        ClientError: AWS refuses to tell.
    """
    is_default = bucket == default_bucket(aws)
    s3 = aws.client("s3")
    try:
        answer = s3.head_bucket(Bucket=bucket, **owner(aws, bucket))
    except ClientError as error:
        return _absent(aws, bucket, is_default, error)
    region = answer.get("BucketRegion") or aws.region
    if region != aws.region:
        raise _elsewhere(bucket, region, aws.region)
    if is_default and not _is_blocked(s3, bucket):
        console.progress(
            f"note: public access to {bucket} is not blocked: `aws s3api put-public-access-block --bucket "
            f"{bucket} --public-access-block-configuration {_BLOCKED}` does that"
        )
    return []


def owner(aws: Aws, bucket: str) -> dict[str, str]:
    """An argument for calls on the default bucket, which fail with it if another account owns the bucket."""
    return {"ExpectedBucketOwner": aws.account} if bucket == default_bucket(aws) else {}


def error_code(error: ClientError) -> str:
    """S3's code of an error; the HTTP status where the answer has no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _absent(aws: Aws, bucket: str, is_default: bool, error: ClientError) -> list[Action]:
    code = error_code(error)
    if code in ("301", "PermanentRedirect", "400"):
        headers: dict[str, Any] = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        raise _elsewhere(bucket, headers.get("x-amz-bucket-region", "another region"), aws.region) from error
    if code in ("403", "AccessDenied"):
        raise CommandError(
            f"the bucket {bucket} cannot be used: it belongs to another account, or s3:ListBucket is missing",
            "--to s3://BUCKET/ names another bucket",
        ) from error
    if code not in ("404", "NoSuchBucket"):
        raise error
    if not is_default:
        raise CommandError(
            f"there is no bucket {bucket}",
            f"make it with `aws s3 mb s3://{bucket} --region {aws.region}`, or leave --to out",
        )
    where = {"CreateBucketConfiguration": {"LocationConstraint": aws.region}}
    request = {"Bucket": bucket} | (where if aws.region != "us-east-1" else {})
    note = "SageMaker's default bucket is not there yet; S3 encrypts what is in it"
    return [Action("s3", "create_bucket", request, note), _block_public_access(bucket)]


def _elsewhere(bucket: str, region: str, wanted: str) -> CommandError:
    return CommandError(
        f"the bucket {bucket} is in {region}; endpoints of {wanted} take model data of {wanted} alone",
        "pass --region, or --to with a bucket of that region",
    )


def _is_blocked(s3: Any, bucket: str) -> bool:
    """Whether the bucket has settings for public access, whatever they are."""
    try:
        s3.get_public_access_block(Bucket=bucket)
    except ClientError as error:
        return error_code(error) != "NoSuchPublicAccessBlockConfiguration"
    return True


def _block_public_access(bucket: str) -> Action:
    # S3 blocks public access to new buckets by itself, unless an account's own template says otherwise
    request = {"Bucket": bucket, "PublicAccessBlockConfiguration": dict.fromkeys(_BLOCKS, True)}
    return Action("s3", "put_public_access_block", request, "nothing in it may be made public")


def read_object(aws: Aws, url: S3Url) -> bytes | None:
    """A small object's bytes; None if it is not there.

    Raises:
        ClientError: AWS refuses.
    """
    try:
        answer = aws.client("s3").get_object(Bucket=url.bucket, Key=url.key, **owner(aws, url.bucket))
    except ClientError as error:
        if error_code(error) in ("NoSuchKey", "404"):
            return None
        raise
    with contextlib.closing(answer["Body"]) as body:
        return bytes(body.read())
