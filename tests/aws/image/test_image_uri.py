"""Addresses of images in ECR, in every partition and by both of their names."""

import pytest

from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.image.uri import ImageUri, registry

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("host", "region", "wanted"),
    [
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "eu-west-1", None),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1", None),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1", None),
        ("123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1", None),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1", "dkr.ecr.eu-west-1.amazonaws.com"),
        ("123456789012.dkr-ecr-fips.us-east-1.on.aws", "us-east-1", "dkr.ecr-fips.us-east-1.amazonaws.com"),
        (
            "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            "cn-north-1",
            "dkr.ecr.cn-north-1.amazonaws.com.cn",
        ),
        (
            "123456789012.dkr-ecr.eusc-de-east-1.on.amazonwebservices.eu",
            "eusc-de-east-1",
            "dkr.ecr.eusc-de-east-1.amazonaws.eu",
        ),
    ],
)
def test_hosts(host: str, region: str, wanted: str | None) -> None:
    image = ImageUri.parse(f"{host}/team/gptj-serve:1@{DIGEST}")
    assert (image.account, image.region, image.repository) == ("123456789012", region, "team/gptj-serve")
    assert (image.tag, image.digest) == ("1", DIGEST)
    assert image.registry == (f"123456789012.{wanted}" if wanted else host)
    assert str(image) == f"{image.registry}/team/gptj-serve@{DIGEST}"


@pytest.mark.parametrize(
    "uri",
    [
        "gptj-serve:latest",
        "public.ecr.aws/x/gptj-serve",
        "123456789012.dkr.ecr.eu-west-1.amazonaws.org/gptj-serve",
        "123456789012.dkr-ecr.eu-west-1.amazonaws.com/gptj-serve",
        "123456789012.dkr.ecr.eu-west-1.on.aws/gptj-serve",
        "12345.dkr.ecr.eu-west-1.amazonaws.com/gptj-serve",
    ],
)
def test_others_are_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="not an image in ECR"):
        ImageUri.parse(uri)


def test_where_a_repository_will_be() -> None:
    assert registry("123456789012", "eusc-de-east-1") == "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu"
