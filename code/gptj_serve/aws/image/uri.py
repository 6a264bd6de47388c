"""Addresses of images; an endpoint's always has a digest, so that what runs is what was tested."""

import re
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
"""Media type of the only kind of images that SageMaker takes."""

_SUFFIXES = {"cn": "amazonaws.com.cn", "eusc": "amazonaws.eu"}
"""How hosts end in China and in the European Sovereign Cloud, by the beginning of the region's name."""

_ECR = re.compile(
    r"(?P<account>\d{12})\."
    r"(dkr\.ecr(?P<fips>-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.(com|com\.cn|eu)"
    # these are other names of the same registries, for IPv6
    r"|dkr-ecr(?P<fips6>-fips)?\.(?P<region6>[a-z0-9-]+)\.on\.(aws|amazonwebservices\.(com\.cn|eu)))/"
    r"(?P<repository>[a-z0-9][a-z0-9._/-]+)(:(?P<tag>[\w][\w.-]*))?(@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True, slots=True)
class ImageUri:
    """An image in ECR.

    Attributes:
        registry: The registry's host, as SageMaker wants it.
        account, region, repository: Where the image is.
        tag: The tag; None if the address has none.
        digest: "sha256:…"; None if the address has none.
    """

    registry: str
    account: str
    region: str
    repository: str
    tag: str | None
    digest: str | None

    @staticmethod
    def parse(uri: str) -> "ImageUri":
        """Parse an address.

        Raises:
            UsageError: It is no address of ECR, and SageMaker takes images only from there.
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
        """Parse an address; None if it is no address of ECR."""
        found = _ECR.fullmatch(uri)
        if not found:
            return None
        account, region = found["account"], found["region"] or found["region6"]
        host = registry(account, region, fips=found["fips"] or found["fips6"] or "")
        return ImageUri(host, account, region, found["repository"], tag=found["tag"], digest=found["digest"])

    def __str__(self) -> str:
        address = f"{self.registry}/{self.repository}"
        return f"{address}@{self.digest}" if self.digest else f"{address}:{self.tag or 'latest'}"


def registry(account: str, region: str, fips: str = "") -> str:
    """The host of an account's registry; ``fips`` is "-fips" for the host with FIPS cryptography."""
    suffix = _SUFFIXES.get(region.partition("-")[0], "amazonaws.com")
    return f"{account}.dkr.ecr{fips}.{region}.{suffix}"


def find_image(aws: Aws, uri: str, console: Console) -> str:
    """The address of an image with its digest; a tag is looked up.

    Raises:
        CommandError: There is no such image, it is in another region, or SageMaker refuses its kind.
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
    found = answer["imageDetails"][0]
    _check_media_type(image, found.get("imageManifestMediaType", DOCKER_MANIFEST))
    return str(found["imageDigest"])


def _check_media_type(image: ImageUri, media_type: str) -> None:
    if media_type == DOCKER_MANIFEST:
        return
    is_index = "index" in media_type or "list" in media_type
    what = "an index of several images" if is_index else "an image with an OCI manifest"
    raise CommandError(
        f"--image {image}: it is {what} ({media_type}), and SageMaker takes a plain Docker image alone",
        "scripts/build and scripts/push make one; with docker itself: "
        "docker buildx build --provenance=false --output=type=docker",
    )
