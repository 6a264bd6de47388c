"""What ``scripts/deploy`` says when the endpoint did not come up."""

from gptj_serve.aws.clients import Aws
from gptj_serve.aws.errors import CommandError
from gptj_serve.aws.failure import has_no_capacity, hint, last_log_lines, log_group
from gptj_serve.aws.fit import fitting_types
from gptj_serve.aws.model_data import config_or_default
from gptj_serve.aws.requests import Wanted
from gptj_serve.aws.rollout import RolloutFailed


def explain_failure(aws: Aws, wanted: Wanted, failed: RolloutFailed) -> CommandError:
    """The reason, what to do, and the container's last words; asks for them, so call it before undoing."""
    if failed.endpoint is None:
        return CommandError(f"{wanted.name} was deleted by somebody else meanwhile")
    status = failed.endpoint["EndpointStatus"]
    what = "the update was called off, the version before it serves" if status == "InService" else status
    message = f"{wanted.name}: {what}: {failed.reason}"
    if has_no_capacity(failed.endpoint):
        return CommandError(message, _others(wanted))
    lines = "\n    ".join(last_log_lines(aws, log_group(wanted.name)))
    advice = hint(failed.reason)
    return CommandError(message, f"{advice}\n  {log_group(wanted.name)}:\n    {lines}".lstrip("\n "))


def _others(wanted: Wanted) -> str:
    config = config_or_default(wanted.data)
    types = fitting_types(config, config.n_positions, None)
    names = [one.name for one in types if one.family != wanted.instance.family]
    advice = "AWS has no such instance free in this region now; --capacity-wait tries longer"
    return f"{advice}, and the model fits {', '.join(names)} too" if names else advice
