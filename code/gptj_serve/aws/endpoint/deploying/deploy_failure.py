"""What ``scripts/deploy`` says when the endpoint, or the component on it, did not come up."""

from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.endpoint.deploying.component_rollout import ComponentFailed
from gptj_serve.aws.endpoint.deploying.failure import has_no_capacity, hint, log_group, read_log
from gptj_serve.aws.endpoint.deploying.requests import EndpointSpec
from gptj_serve.aws.endpoint.deploying.rollout import RolloutFailed
from gptj_serve.aws.machines.fit import fitting_types
from gptj_serve.aws.machines.instances import next_ami
from gptj_serve.aws.model.in_s3 import config_or_default


def explain_failure(aws: Aws, wanted: EndpointSpec, failed: RolloutFailed) -> CommandError:
    """The reason, what to do, and the container's last words; asks for them, so call it before undoing."""
    if failed.endpoint is None:
        return CommandError(f"{wanted.name} was deleted by somebody else meanwhile")
    status = failed.endpoint["EndpointStatus"]
    what = "the update was called off, the version before it serves" if status == "InService" else status
    message = f"{wanted.name}: {what}: {failed.reason}"
    if has_no_capacity(failed.endpoint):
        return CommandError(message, _others(wanted))
    return CommandError(message, _advice(aws, wanted, failed.reason, log_group(wanted.name)))


def explain_component_failure(aws: Aws, wanted: EndpointSpec, failed: ComponentFailed) -> CommandError:
    """The same for the component, which has the endpoint's name."""
    if failed.component is None:
        return CommandError(f"the component {wanted.name} was deleted by somebody else meanwhile")
    status = failed.component.get("InferenceComponentStatus")
    what = "the update was called off" if status == "InService" else status
    group = log_group(wanted.name, "InferenceComponents")
    message = f"the component {wanted.name}: {what}: {failed.reason}"
    return CommandError(message, _advice(aws, wanted, failed.reason, group))


def _advice(aws: Aws, wanted: EndpointSpec, reason: str, group: str) -> str:
    log = read_log(aws, group)
    lines = "\n    ".join(log.lines)
    advice = [one for one in (hint(reason), _other_host(wanted) if log.is_empty else "") if one]
    return "\n  ".join([*advice, f"{group}:\n    {lines}"])


def _other_host(wanted: EndpointSpec) -> str:
    """What to try when a container could not even write a line: the host's driver may not go with it."""
    if wanted.ami is None:
        return ""
    other = next_ami(wanted.instance, wanted.ami)
    ran = f"the host image was {wanted.ami}"
    return f"{ran}; the next one to try: --inference-ami {other}" if other else f"{ran}, the last one to try"


def _others(wanted: EndpointSpec) -> str:
    config = config_or_default(wanted.data)
    types = fitting_types(config, config.max_positions, None)
    names = [one.name for one in types if one.family != wanted.instance.family]
    advice = "AWS has no such instance free in this region now; --capacity-wait tries longer"
    return f"{advice}, and the model fits {', '.join(names)} too" if names else advice
