"""Waiting for an endpoint: what is shown, and what is put up with."""

import io
from collections.abc import Mapping
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from gptj_serve.aws.common.console import Console
from gptj_serve.aws.endpoint import waiting
from gptj_serve.aws.endpoint.kinds import COMPONENT, ENDPOINT, Kind
from gptj_serve.aws.endpoint.waiting import Waiter
from support.aws.deploy_account import FakeTime


class Sagemaker:
    """Answers in turn; an exception is raised."""

    def __init__(self, *answers: Mapping[str, Any] | Exception) -> None:
        self.answers = list(answers)

    def describe_endpoint(self, EndpointName: str) -> Mapping[str, Any]:
        assert EndpointName == "gpt-j"
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def describe_inference_component(self, InferenceComponentName: str) -> Mapping[str, Any]:
        return self.describe_endpoint(InferenceComponentName)


def is_(status: str, **more: Any) -> Mapping[str, Any]:
    return {"EndpointStatus": status, **more}


def refused(code: str, message: str = "") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "DescribeEndpoint")


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(waiting, "SYSTEM_CLOCK", waiting.Clock(fake.now, fake.sleep))
    return fake


def settle(
    *answers: Mapping[str, Any] | Exception, kind: Kind = ENDPOINT
) -> tuple[Mapping[str, Any] | None, list[str]]:
    err = io.StringIO()
    endpoint = Waiter(Sagemaker(*answers), "gpt-j", Console(err=err), kind).settle()
    return endpoint, [line.strip() for line in err.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("status", "pending", "comes"),
    [
        ("InService", None, ("InService", "old")),
        ("Failed", None, ("Failed", "old")),
        ("Creating", None, ("InService", "old")),
        ("Updating", "new", ("InService", "new")),
        ("SystemUpdating", None, ("InService", "old")),
        ("RollingBack", "new", ("InService", "old")),
        ("Deleting", None, None),
    ],
)
def test_how_it_will_be_when_it_has_settled(status: str, pending: str | None, comes: Any) -> None:
    more = {"PendingDeploymentSummary": {"EndpointConfigName": pending}} if pending else {}
    found = ENDPOINT.settled(is_(status, EndpointConfigName="old", **more))
    assert (found and (found["EndpointStatus"], found["EndpointConfigName"])) == comes
    assert ENDPOINT.settled(None) is None


def test_changes_are_shown_with_the_time() -> None:
    baking = {"ProductionVariants": [{"VariantStatus": [{"Status": "Baking"}]}]}
    endpoint, lines = settle(
        is_("Updating"),
        is_("Updating"),
        is_("Updating", PendingDeploymentSummary=baking),
        is_("InService"),
    )
    assert endpoint == is_("InService")
    assert lines == ["0:00  Updating", "0:30  Updating (Baking)", "0:45  InService"]


def test_gone() -> None:
    endpoint, lines = settle(is_("Deleting"), refused("ValidationException", "Could not find endpoint"))
    assert endpoint is None
    assert lines == ["0:00  Deleting", "0:15  gone"]


def test_a_moment_without_aws_is_put_up_with(clock: FakeTime) -> None:
    away = EndpointConnectionError(endpoint_url="https://x")
    endpoint, lines = settle(is_("Creating"), away, refused("ThrottlingException"), is_("InService"))
    assert endpoint == is_("InService")
    assert "0:15  AWS does not answer; trying on" in lines
    assert sum(clock.slept) == 45


def test_a_component_is_waited_for_with_the_same_patience(clock: FakeTime) -> None:
    creating, up = ({"InferenceComponentStatus": one} for one in ("Creating", "InService"))
    away = EndpointConnectionError(endpoint_url="https://x")
    component, lines = settle(creating, away, refused("ThrottlingException"), up, kind=COMPONENT)
    assert component == up
    assert lines == ["0:00  component gpt-j is Creating", "0:15  AWS does not answer; trying on"]
    assert sum(clock.slept) == 45


def test_but_not_for_ever() -> None:
    with pytest.raises(EndpointConnectionError):
        settle(*[EndpointConnectionError(endpoint_url="https://x")] * 100)


def test_other_errors_end_it() -> None:
    with pytest.raises(ClientError):
        settle(refused("AccessDeniedException"))
