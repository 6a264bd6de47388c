"""The container's variables: defaults, and what is refused before anything is made."""

import pytest

from gptj_serve.aws.common.errors import UsageError
from gptj_serve.aws.endpoint.deploying.environment import container_environment


def test_defaults() -> None:
    environment, settings = container_environment([], is_async=False)
    assert environment == {"GPTJ_FRONT": "http", "TENSOR_PARALLEL_DEGREE": "1"}
    assert settings.front == "http"


def test_asynchronous_requests_may_take_longer() -> None:
    _, settings = container_environment([], is_async=True)
    assert settings.request_timeout_s == 890
    _, settings = container_environment(["GPTJ_REQUEST_TIMEOUT_S=100"], is_async=True)
    assert settings.request_timeout_s == 100


def test_the_user_wins() -> None:
    environment, settings = container_environment(
        ["GPTJ_FRONT=mms", "GPTJ_MAX_CONTEXT=1024", "OTHER=a=b"], is_async=False
    )
    assert (settings.front, settings.max_context, environment["OTHER"]) == ("mms", 1024, "a=b")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("GPTJ_X=1", "--env GPTJ_X: no such setting; there are GPTJ_MODEL_DIR, "),
        ("GPTJ_MAX_CONTEXT=1", "must be a whole number from 2"),
        ("TENSOR_PARALLEL_DEGREE=4", "must be 1"),
        ("GPTJ_PORT=9000", "port 8080"),
        ("SAGEMAKER_BIND_TO_PORT=9000", "port 8080"),
        ("GPTJ_HOST=127.0.0.1", "leave it out"),
        ("novalue", "NAME=VALUE"),
        ("1A=2", "NAME=VALUE"),
        ("A=" + "x" * 1025, "at most 1024"),
    ],
)
def test_what_would_not_work_is_refused(assignment: str, said: str) -> None:
    with pytest.raises(UsageError, match="--env") as caught:
        container_environment([assignment], is_async=False)
    assert said in caught.value.message
