"""The manifest of an upload, an object that is put beside it last: an upload without it is not complete.

Serving does not look at it, since `gptj_serve.models.model_dir` knows a model by the names of its own files.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.s3 import S3Url, read_object
from gptj_serve.aws.model.files import ModelFile, contents_hash

NAME = "gptj-serve.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """A complete upload.

    Attributes:
        name: The model's name.
        sha256: SHA-256 of all names and contents.
        num_weights: How many numbers all tensors have.
        weight_types: The numbers' types as safetensors calls them, usually ``F16``.
        bytes_by_name: The sizes of the model's files, also where they were put into one archive.
        is_tar: Whether they were put into one archive.
    """

    name: str
    sha256: str
    num_weights: int
    weight_types: tuple[str, ...]
    bytes_by_name: dict[str, int]
    is_tar: bool

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(self.bytes_by_name.values())

    def to_bytes(self) -> bytes:
        """The object's body; the same manifest gives the same bytes."""
        content = {
            "format": _FORMAT,
            "name": self.name,
            "sha256": self.sha256,
            "num_weights": self.num_weights,
            "weight_types": list(self.weight_types),
            "files": self.bytes_by_name,
            "tar": self.is_tar,
        }
        return (json.dumps(content, indent=1) + "\n").encode()


def of_files(
    name: str, files: Sequence[ModelFile], num_weights: int, weight_types: Sequence[str], is_tar: bool
) -> ModelManifest:
    """The manifest of an upload."""
    bytes_by_name = {file.name: file.num_bytes for file in files}
    return ModelManifest(name, contents_hash(files), num_weights, tuple(weight_types), bytes_by_name, is_tar)


def read(aws: Aws, model_data: S3Url) -> ModelManifest | None:
    """Read an upload's manifest; None if the upload is not complete, or `upload-model` did not make it.

    Args:
        aws: The account.
        model_data: The prefix with its ``/``, or the archive.

    Raises:
        ClientError: AWS refuses.
    """
    folder = model_data.key.rpartition("/")[0]
    body = read_object(aws, S3Url(model_data.bucket, f"{folder}/{NAME}" if folder else NAME))
    try:
        content = json.loads(body or b"")
        return ModelManifest(
            content["name"],
            content["sha256"],
            content["num_weights"],
            tuple(content["weight_types"]),
            dict(content["files"]),
            content["tar"],
        )
    except (ValueError, KeyError, TypeError):
        return None
