"""Makes the environment of an endpoint's container, checked as the service itself will check it."""

import re
from collections.abc import Sequence

from gptj_serve.aws.common.errors import UsageError
from gptj_serve.errors import StartupError
from gptj_serve.settings import Settings

DEFAULTS = {
    # this front streams, notices clients that left, and has /metrics, which SageMaker reads
    "GPTJ_FRONT": "http",
    "TENSOR_PARALLEL_DEGREE": "1",
}

ASYNC_TIMEOUT_S = "890"
"""It is below the 15 minutes that SageMaker gives an asynchronous request by default."""


def container_environment(assignments: Sequence[str], *, is_async: bool) -> tuple[dict[str, str], Settings]:
    """The container's variables, and the settings that the service makes of them.

    Args:
        assignments: The values of ``--env``, "NAME=VALUE" each.
        is_async: Whether the endpoint is asynchronous.

    Raises:
        UsageError: A variable is malformed, unknown, out of range, or cannot work on SageMaker.
    """
    chosen = DEFAULTS | ({"GPTJ_REQUEST_TIMEOUT_S": ASYNC_TIMEOUT_S} if is_async else {})
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not re.fullmatch(r"[a-zA-Z_]\w*", name, re.ASCII):
            raise UsageError(f"--env {assignment.partition('=')[0]}: NAME=VALUE is wanted")
        if len(value) > 1024:
            raise UsageError(f"--env {name}: at most 1024 characters, these are {len(value)}")
        chosen[name] = value
    try:
        settings = Settings.from_env(chosen)
    except StartupError as error:
        raise UsageError(f"--env {error}") from error
    _check_network(settings)
    return chosen, settings


def _check_network(settings: Settings) -> None:
    if settings.port != 8080:
        raise UsageError(f"--env GPTJ_PORT={settings.port}: SageMaker asks port 8080 alone")
    if settings.host != "0.0.0.0":
        raise UsageError(f"--env GPTJ_HOST={settings.host}: SageMaker could not reach it; leave it out")
