"""The image's repository in Amazon ECR: looks at what exists, and plans what makes it as it should be."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common import tags
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.plan import Action
from gptj_serve.aws.image.docker import ImageManifest
from gptj_serve.aws.image.uri import DOCKER_MANIFEST, registry

DEFAULT_NAME = "gptj-serve"
TAG = "gptj-serve:repository"
"""Key of the tag that marks a repository as ours; several endpoints may use its images."""
UNTAGGED_DAYS = 7
"""Days after which images that no tag names are removed."""

MEDIA_TYPES = (
    DOCKER_MANIFEST,
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
)
"""Media types of manifests; SageMaker takes only the first."""

LIFECYCLE = {
    "rules": [
        {
            "rulePriority": 1,
            "description": "Images without a tag",
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": UNTAGGED_DAYS,
            },
            "action": {"type": "expire"},
        }
    ]
}


@dataclass(frozen=True)
class Repository:
    """A repository that exists.

    Attributes:
        uri: ``HOST/NAME``.
        arn: The repository's ARN.
        tags: The repository's tags.
        has_lifecycle: Whether it has any lifecycle policy.
        is_immutable: Whether an image's tag cannot be moved to another image.
    """

    uri: str
    arn: str
    tags: Mapping[str, str]
    has_lifecycle: bool
    is_immutable: bool

    @property
    def is_ours(self) -> bool:
        """Whether we made it; a repository of others keeps its settings."""
        return TAG in self.tags


def find_repository(aws: Aws, name: str) -> Repository | None:
    """Look for a repository; AWS is only asked."""
    ecr = aws.client("ecr")
    try:
        found = ecr.describe_repositories(repositoryNames=[name])["repositories"][0]
        described = ecr.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
    except ecr.exceptions.RepositoryNotFoundException:
        return None
    return Repository(
        uri=found["repositoryUri"],
        arn=found["repositoryArn"],
        tags={tag["Key"]: tag.get("Value", "") for tag in described},
        has_lifecycle=_has_lifecycle(ecr, name),
        is_immutable=str(found.get("imageTagMutability", "")).startswith("IMMUTABLE"),
    )


def expected_uri(aws: Aws, name: str) -> str:
    """The address that a repository will have when it exists."""
    return f"{registry(aws.account, aws.region)}/{name}"


def plan_repository(name: str, found: Repository | None, users_tags: Mapping[str, str]) -> list[Action]:
    """The calls that make the repository with its policy and its tags; none if everything exists already.

    A repository that somebody else made stays as it is.

    Args:
        name: The repository's name.
        found: The repository if it exists.
        users_tags: Tags beside our own.
    """
    actions = []
    policy = {"repositoryName": name, "lifecyclePolicyText": json.dumps(LIFECYCLE)}
    expire = Action(
        "ecr", "put_lifecycle_policy", policy, f"remove images without a tag after {UNTAGGED_DAYS} days"
    )
    if found is None:
        actions = [_create(name, {**users_tags, TAG: name}), expire]
    else:
        missing = {key: value for key, value in users_tags.items() if found.tags.get(key) != value}
        if missing and found.is_ours:
            request = {"resourceArn": found.arn, "tags": tags.to_list(missing)}
            actions.append(Action("ecr", "tag_resource", request, "tags"))
        # an interrupted run made only the repository
        if found.is_ours and not found.has_lifecycle:
            actions.append(expire)
    return actions


def look_up(name: str, tag: str) -> Action:
    """The call that asks which image a tag names."""
    request = {
        "repositoryName": name,
        "imageIds": [{"imageTag": tag}],
        "acceptedMediaTypes": list(MEDIA_TYPES),
    }
    return Action("ecr", "batch_get_image", request, "its digest")


def find_pushed(aws: Aws, name: str, tag: str) -> ImageManifest | None:
    """The image of a tag in a repository that exists; None if there is none."""
    images = look_up(name, tag).apply(aws)["images"]
    return _manifest(images[0]) if images else None


def _manifest(image: Mapping[str, Any]) -> ImageManifest:
    inner = json.loads(image["imageManifest"])
    media_type = image.get("imageManifestMediaType") or inner.get("mediaType", "")
    return ImageManifest(
        image["imageId"]["imageDigest"], (inner.get("config") or {}).get("digest"), media_type
    )


def _create(name: str, wanted: Mapping[str, str]) -> Action:
    request = {
        "repositoryName": name,
        "imageScanningConfiguration": {"scanOnPush": True},
        "imageTagMutability": "IMMUTABLE",
        "tags": tags.to_list(wanted),
    }
    return Action("ecr", "create_repository", request, "a private place for the image")


def _has_lifecycle(ecr: Any, name: str) -> bool:
    try:
        ecr.get_lifecycle_policy(repositoryName=name)
    except ClientError as error:
        if error.response["Error"]["Code"] == "LifecyclePolicyNotFoundException":
            return False
        raise
    return True
