"""Uploads a model's files to a prefix of S3: what is there already stays, and the manifest comes last.

S3 only has whole objects, and checks each against the CRC-32 of the file that was read before. An object that
exists counts as the same if its size and the SHA-256 in its metadata are the same.
"""

import base64
import contextlib
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from s3transfer.manager import TransferManager
from s3transfer.subscribers import BaseSubscriber

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.common.s3 import S3Url, error_code, owner
from gptj_serve.aws.model import manifest
from gptj_serve.aws.model.files import ModelFile

SHA256 = "gptj-serve-sha256"
"""The name of the metadata with the SHA-256 of the object's bytes, or of everything in an archive."""

PART_BYTES = 64 << 20
"""Files above this size are uploaded in parts."""
_CONNECTIONS = 10


@dataclass(frozen=True, slots=True)
class FileUpload:
    """A file and its object.

    Attributes:
        file: The file.
        key: The object's key.
        sha256: The SHA-256 in the object's metadata.
    """

    file: ModelFile
    key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Remote:
    """What is under a prefix.

    Attributes:
        bytes_by_key: Every object's size.
        sha256_by_key: The SHA-256 in the metadata of our own objects.
        unfinished: Keys and ids of interrupted uploads in parts.
    """

    bytes_by_key: Mapping[str, int] = field(default_factory=dict)
    sha256_by_key: Mapping[str, str] = field(default_factory=dict)
    unfinished: Sequence[tuple[str, str]] = ()

    def has(self, key: str, sha256: str, num_bytes: int | None) -> bool:
        """Whether an object is what would be uploaded; sizes are compared if a size is given."""
        same_size = num_bytes is None or self.bytes_by_key.get(key) == num_bytes
        return same_size and self.sha256_by_key.get(key) == sha256


@dataclass(frozen=True, slots=True)
class S3Target:
    """The place that a model is uploaded to.

    Attributes:
        url: The prefix, whose key ends with ``/``.
        extra: Arguments for every call that makes an object (encryption).
        owner: Arguments for every call.
    """

    url: S3Url
    extra: Mapping[str, str]
    owner: Mapping[str, str]

    def call(self, operation: str, note: str = "", **request: Any) -> Action:
        """Build a call on the bucket."""
        return Action("s3", operation, {"Bucket": self.url.bucket, **request, **self.owner}, note)


@dataclass(frozen=True, slots=True)
class UploadPlan:
    """Everything that has to be done, in this order.

    Attributes:
        before: Calls that clear the way.
        uploads: Files that are missing or differ.
        after: Calls that delete what does not belong there, and put the manifest there.
    """

    before: Sequence[Action]
    uploads: Sequence[FileUpload]
    after: Sequence[Action]

    @property
    def num_bytes(self) -> int:
        """How many bytes are uploaded, without the manifest."""
        return sum(upload.file.num_bytes for upload in self.uploads)


def target(aws: Aws, url: S3Url, kms_key: str | None) -> S3Target:
    """The place for a model, with a KMS key if one is given."""
    encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
    return S3Target(url, encryption, owner(aws, url.bucket))


def look(aws: Aws, place: S3Target) -> Remote:
    """Look at what is under the prefix.

    Raises:
        ClientError: AWS refuses to tell.
    """
    s3, bucket, prefix = aws.client("s3"), place.url.bucket, place.url.key
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **place.owner)
    bytes_by_key = {one["Key"]: one["Size"] for page in pages for one in page.get("Contents", ())}
    sha256_by_key: dict[str, str] = {}
    for key in bytes_by_key:
        if _is_direct(key, prefix):
            found = s3.head_object(Bucket=bucket, Key=key, **place.owner)["Metadata"].get(SHA256)
            sha256_by_key |= {key: found} if found else {}
    return Remote(bytes_by_key, sha256_by_key, _unfinished(s3, place))


def plan(
    place: S3Target, uploads: Sequence[FileUpload], whole: manifest.ModelManifest, remote: Remote
) -> UploadPlan:
    """Plan what is missing, differs or does not belong there.

    Raises:
        CommandError: Somebody else's objects are under the prefix, which SageMaker would download too.
    """
    manifest_key, body = place.url.key + manifest.NAME, whole.to_bytes()
    is_complete = remote.has(manifest_key, hashlib.sha256(body).hexdigest(), len(body))
    missing = [one for one in uploads if not remote.has(one.key, one.sha256, _comparable_bytes(one, whole))]
    stale = _stale(place, {manifest_key, *(one.key for one in uploads)}, remote)
    before = [
        place.call("abort_multipart_upload", "parts of an upload that was broken off", Key=key, UploadId=name)
        for key, name in remote.unfinished
    ]
    if is_complete and not missing and not stale:
        return UploadPlan(before, (), ())
    if manifest_key in remote.bytes_by_key:
        note = "what is there changes, also for endpoints that use it: incomplete until this is back"
        before.append(place.call("delete_object", note, Key=manifest_key))
    removed = [place.call("delete_object", "no part of this model", Key=key) for key in stale]
    return UploadPlan(before, missing, [*removed, _put_manifest(place, manifest_key, body)])


def upload_actions(place: S3Target, uploads: Sequence[FileUpload]) -> list[Action]:
    """The calls of uploads for people to read, in which parts are counted, not listed."""
    actions = []
    for one in uploads:
        num_parts = -(-one.file.num_bytes // PART_BYTES)
        request = {"Key": one.key, **_object_arguments(place, one)}
        if one.file.num_bytes < PART_BYTES:
            actions.append(place.call("put_object", str(one.file.path), **request))
        else:
            note = f"{one.file.path}: then upload_part {num_parts} times, and complete_multipart_upload"
            whole = f" (ChecksumCRC32={request.pop('ChecksumCRC32', 'known then')})"
            request |= {"ChecksumAlgorithm": "CRC32", "ChecksumType": "FULL_OBJECT"}
            actions.append(place.call("create_multipart_upload", note + whole, **request))
    return actions


def apply(aws: Aws, place: S3Target, steps: UploadPlan, console: Console) -> None:
    """Carry out a plan, and show how far it is.

    Raises:
        CommandError: A file changed meanwhile.
        ClientError: AWS refuses.
        KeyboardInterrupt: The upload was interrupted; its parts are deleted again.
    """
    _call(aws, steps.before, console)
    config = TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=_CONNECTIONS
    )
    with (
        console.bar(steps.num_bytes, "Uploading")
        if steps.uploads
        else contextlib.nullcontext(_ignore) as add,
        TransferManager(aws.client("s3"), config) as manager,
    ):
        pending = [
            manager.upload(
                str(one.file.path),
                place.url.bucket,
                one.key,
                {**_object_arguments(place, one), **place.owner},
                [_Progress(add)],
            )
            for one in steps.uploads
        ]
        for one, future in zip(steps.uploads, pending, strict=True):
            _wait(one, future)
    for one in steps.uploads:
        _check(aws, place, one)
    _call(aws, steps.after, console)


def _call(aws: Aws, actions: Sequence[Action], console: Console) -> None:
    for action in actions:
        console.progress(f"{action.operation} {action.request['Key']}: {action.note}")
        action.apply(aws)


def _ignore(_num_bytes: int) -> None:
    pass


class _Progress(BaseSubscriber):  # type: ignore[misc]  # s3transfer has no types
    def __init__(self, add: Callable[[int], None]) -> None:
        self._add = add

    def on_progress(self, bytes_transferred: int, **_: Any) -> None:
        self._add(bytes_transferred)


def _wait(upload: FileUpload, future: Any) -> None:
    try:
        future.result()
    except ClientError as error:
        if error_code(error) in ("BadDigest", "XAmzContentChecksumMismatch"):
            raise _changed(upload) from error
        raise


def _check(aws: Aws, place: S3Target, upload: FileUpload) -> None:
    """Check that the object is the file, as stores that are only like S3 may have ignored the checksum."""
    answer = aws.client("s3").head_object(
        Bucket=place.url.bucket, Key=upload.key, ChecksumMode="ENABLED", **place.owner
    )
    wanted = _object_arguments(place, upload).get("ChecksumCRC32")
    crc32 = wanted if answer.get("ChecksumType") == "COMPOSITE" else answer.get("ChecksumCRC32", wanted)
    if (answer["ContentLength"], crc32) != (upload.file.num_bytes, wanted):
        raise _changed(upload)


def _changed(upload: FileUpload) -> CommandError:
    return CommandError(
        f"{upload.file.path} was changed while it was uploaded", "run this again when it stays as it is"
    )


def _unfinished(s3: Any, place: S3Target) -> list[tuple[str, str]]:
    pages = s3.get_paginator("list_multipart_uploads").paginate(
        Bucket=place.url.bucket, Prefix=place.url.key, **place.owner
    )
    found = [(one["Key"], one["UploadId"]) for page in pages for one in page.get("Uploads", ())]
    return [one for one in found if _is_direct(one[0], place.url.key)]


def _is_direct(key: str, prefix: str) -> bool:
    """Whether an object is directly under the prefix, as another upload's prefix may lie below it."""
    return key.startswith(prefix) and "/" not in key[len(prefix) :] and key != prefix


def _stale(place: S3Target, wanted: set[str], remote: Remote) -> list[str]:
    others = [key for key in remote.bytes_by_key if key not in wanted]
    folder = [key for key in others if key == place.url.key and remote.bytes_by_key[key] == 0]
    ours = [key for key in others if key in remote.sha256_by_key]
    if foreign := sorted(set(others) - set(folder) - set(ours)):
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise CommandError(
            f"s3://{place.url.bucket}/{foreign[0]}{more}: not put there by upload-model, and SageMaker would "
            "give it to the container as a part of the model",
            "take it away, or pass --to with another prefix",
        )
    return [*folder, *ours]


def _comparable_bytes(upload: FileUpload, whole: manifest.ModelManifest) -> int | None:
    # with another zlib, an archive of the same contents may have another size
    return None if whole.is_tar else upload.file.num_bytes


def _object_arguments(place: S3Target, upload: FileUpload) -> dict[str, Any]:
    crc32 = upload.file.crc32
    checksum = {} if crc32 is None else {"ChecksumCRC32": _base64(crc32)}
    return {"Metadata": {SHA256: upload.sha256}, **checksum, **place.extra}


def _base64(crc32: int) -> str:
    return base64.b64encode(crc32.to_bytes(4, "big")).decode()


def _put_manifest(place: S3Target, key: str, body: bytes) -> Action:
    return place.call(
        "put_object",
        "last: with it the upload is complete",
        Key=key,
        Body=body,
        ContentType="application/json",
        Metadata={SHA256: hashlib.sha256(body).hexdigest()},
        ChecksumCRC32=_base64(zlib.crc32(body)),
        **place.extra,
    )
