"""The image of an endpoint: always by digest, so that what runs is what was tested."""

import re
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.console import Console
from gptj_serve.aws.errors import CommandError, UsageError

_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/"
    r"(?P<repository>[a-z0-9][a-z0-9._/-]+)(:(?P<tag>[\w][\w.-]*))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class ImageUri:
    """An image in ECR.

    Attributes:
        registry: Its host.
        account, region, repository: Where it is.
        tag: None if none is named.
        digest: "sha256:…"; None if none is named.
    """

    registry: str
    account: str
    region: str
    repository: str
    tag: str | None
    digest: str | None

    @staticmethod
    def parse(uri: str) -> "ImageUri":
        """Take an address apart.

        Raises:
            UsageError: It is not one of ECR, from which alone SageMaker takes images.
        """
        image = ImageUri.find(uri)
        if image is None:
            raise UsageError(
                f"--image {uri}: not an image in ECR",
                "it looks like 123456789012.dkr.ecr.us-east-1.amazonaws.com/gptj-serve@sha256:…; "
                "scripts/push prints it",
            )
        return image

    @staticmethod
    def find(uri: str) -> "ImageUri | None":
        """Take an address apart; None if it is not one of ECR."""
        found = _ECR.fullmatch(uri)
        if not found:
            return None
        where = found["account"], found["region"], found["repository"]
        return ImageUri(uri.split("/")[0], *where, tag=found["tag"], digest=found["digest"])

    def __str__(self) -> str:
        address = f"{self.registry}/{self.repository}"
        return f"{address}@{self.digest}" if self.digest else f"{address}:{self.tag or 'latest'}"


def find_image(aws: Aws, uri: str, console: Console) -> str:
    """The address of an image with its digest; a tag is looked up.

    Raises:
        CommandError: There is no such image, or it is in another region.
    """
    image = ImageUri.parse(uri)
    if image.region != aws.region:
        raise CommandError(
            f"--image: it is in {image.region}, the endpoint in {aws.region}; SageMaker wants both in one",
            f"push it there, or pass --region {image.region}",
        )
    digest = _look_up(aws.client("ecr"), image, console)
    if image.digest is None:
        console.progress(f"{image} is {digest}: the endpoint gets that, wherever the tag goes later.")
    return f"{image.registry}/{image.repository}@{digest}"


def _look_up(ecr: Any, image: ImageUri, console: Console) -> str:
    which = {"imageDigest": image.digest} if image.digest else {"imageTag": image.tag or "latest"}
    try:
        answer = ecr.describe_images(
            registryId=image.account, repositoryName=image.repository, imageIds=[which]
        )
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("ImageNotFoundException", "RepositoryNotFoundException"):
            missing = "image" if code.startswith("Image") else "repository"
            raise CommandError(
                f"--image {image}: there is no such {missing}", "scripts/push puts one there"
            ) from error
        if image.digest and code == "AccessDeniedException":
            console.progress(f"Whether {image} exists could not be checked (ecr:DescribeImages).")
            return image.digest
        raise
    return str(answer["imageDetails"][0]["imageDigest"])
