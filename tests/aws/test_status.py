"""``scripts/status`` against moto, over HTTP."""

import pytest

from gptj_serve.aws.common.clients import Aws
from support.aws.made_endpoints import endpoint_in_moto, make_endpoint
from support.aws.run_commands import call, command


@pytest.mark.usefixtures("aws")
def test_an_empty_account() -> None:
    result = call("status")
    assert result.code == 0
    assert "No endpoint of ours in eu-west-1" in result.out
    assert call("status", "--json").json["endpoints"] == []


def test_all_endpoints_of_ours_and_the_sum(aws: Aws) -> None:
    make_endpoint(aws, "one")
    make_endpoint(aws, "two", "ml.g4dn.xlarge")
    make_endpoint(aws, "other", tagged=False)
    found = call("status", "--json").json
    assert [one["name"] for one in found["endpoints"]] == ["one", "two"]
    assert found["usd_an_hour"] == pytest.approx(0.94 + 0.7364)
    assert "All of it: $1.68 an hour" in call("status").out


def test_one_endpoint_with_everything(aws: Aws) -> None:
    make_endpoint(aws, component=True, environment={"GPTJ_MAX_QUEUE": "5"})
    call("scale", "gpt-j", "--max", "2", "--to-zero")
    result = command("status", "gpt-j")
    assert result.code == 0
    for said in (
        "gpt-j: InService",
        "1 x ml.g4dn.2xlarge (1 x T4 each)",
        "component      gpt-j, InService, 1 of 1 copies",
        "GPTJ_MAX_QUEUE=5",
        "s3://models/gpt-j-6b/",
        "0 to 2 copies",
        "gptj-serve/gpt-j/from-zero",
        "$0.94 an hour, $22.56 a day",
    ):
        assert said in result.out, result.out
    assert result.err == ""


def test_a_price_that_nobody_knows(aws: Aws) -> None:
    make_endpoint(aws, instance_type="ml.p5.4xlarge")
    assert "unknown: there is no list price" in call("status", "gpt-j").out
    assert call("status", "gpt-j", "--json").json["usd_an_hour"] is None


def test_an_endpoint_that_failed(aws: Aws) -> None:
    make_endpoint(aws, status="Failed")
    endpoint_in_moto("gpt-j").failure_reason = "CannotStartContainerError"
    out = call("status", "gpt-j").out
    assert "failed         CannotStartContainerError" in out
    assert "/aws/sagemaker/Endpoints/gpt-j" in out


def test_what_is_left_of_an_endpoint_that_is_gone(aws: Aws) -> None:
    make_endpoint(aws)
    aws.client("sagemaker").delete_endpoint(EndpointName="gpt-j")
    out = call("status", "gpt-j").out
    assert "gpt-j: no endpoint" in out
    assert "left over      model gpt-j-0a1b2c3d" in out
    assert "scripts/delete gpt-j" in out


@pytest.mark.usefixtures("aws")
def test_a_name_that_is_not_there() -> None:
    result = call("status", "gpt-j")
    assert result.code == 1
    assert "there is no endpoint gpt-j in eu-west-1" in result.err
