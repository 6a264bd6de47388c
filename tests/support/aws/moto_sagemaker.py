"""What moto's SageMaker lacks: updates, endpoints that take time or fail, names that are taken.

`install` teaches it to moto once a process; what an endpoint shall do next is a `Script`, which each test
sets anew. The answers go through moto's serialiser and botocore's parser, so their shapes are SageMaker's.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moto.core.responses import ActionResult, EmptyResult
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import FakeEndpoint, FakeEndpointConfig, SageMakerModelBackend
from moto.sagemaker.responses import SageMakerResponse


@dataclass
class Script:
    """What endpoints do.

    Attributes:
        creations: FailureReason of each creation in turn, None for one that works; at the end all work.
        updates: The same for updates; one that fails leaves the old configuration.
        num_busy: How often an endpoint is described as busy after each call.
    """

    creations: list[str | None] = field(default_factory=list)
    updates: list[str | None] = field(default_factory=list)
    num_busy: int = 0
    is_finished: bool = False

    def finish(self) -> None:
        """Whatever is busy ends when it is next looked at."""
        self.is_finished = True


script = Script()


def reset() -> None:
    """Endpoints are made and changed at once, and nothing fails."""
    script.creations, script.updates, script.num_busy, script.is_finished = [], [], 0, False


def install() -> None:
    """Teach moto; again is nothing."""
    if getattr(SageMakerResponse, "knows_updates", False):
        return
    SageMakerResponse.knows_updates = True
    # botocore checks the types before; moto's list is an old one
    FakeEndpointConfig.validate_instance_type = lambda *_: None
    for operation, method in _methods():
        setattr(SageMakerResponse, operation, method)


def _methods() -> Iterator[tuple[str, Any]]:
    original = {
        name: getattr(SageMakerResponse, name)
        for name in (
            "create_model",
            "describe_model",
            "create_endpoint_config",
            "describe_endpoint_config",
            "create_endpoint",
            "delete_endpoint_config",
        )
    }

    def create_model(self: Any) -> ActionResult:
        _refuse_taken("model", self._get_param("ModelName"), self.sagemaker_backend._models)
        return original["create_model"](self)

    def describe_model(self: Any) -> ActionResult:
        return _without_empty(original["describe_model"](self))

    def create_endpoint_config(self: Any) -> ActionResult:
        name = self._get_param("EndpointConfigName")
        _refuse_taken("endpoint configuration", name, self.sagemaker_backend.endpoint_configs)
        answer = original["create_endpoint_config"](self)
        config: FakeEndpointConfig = self.sagemaker_backend.endpoint_configs[name]
        config.metrics_config = self._get_param("MetricsConfig")
        return answer

    def describe_endpoint_config(self: Any) -> ActionResult:
        return _without_empty(original["describe_endpoint_config"](self))

    def delete_endpoint_config(self: Any) -> ActionResult:
        name = self._get_param("EndpointConfigName")
        endpoints = self.sagemaker_backend.endpoints.values()
        users = [
            one for one in endpoints if name in (one.endpoint_config_name, getattr(one, "following", None))
        ]
        if users:
            raise ValidationError(message=f'Endpoint configuration "{name}" is in use')
        return original["delete_endpoint_config"](self)

    def create_endpoint(self: Any) -> ActionResult:
        name = self._get_param("EndpointName")
        _refuse_taken("endpoint", name, self.sagemaker_backend.endpoints)
        answer = original["create_endpoint"](self)
        endpoint = self.sagemaker_backend.endpoints[name]
        reason = script.creations.pop(0) if script.creations else None
        _begin(endpoint, "Creating", "Failed" if reason else "InService", reason)
        return answer

    def update_endpoint(self: Any) -> ActionResult:
        return _update(self.sagemaker_backend, self._get_param)

    def describe_endpoint(self: Any) -> ActionResult:
        backend: SageMakerModelBackend = self.sagemaker_backend
        answer = dict(backend.describe_endpoint(self._get_param("EndpointName")))
        _go_on(backend.endpoints[self._get_param("EndpointName")])
        following = answer.pop("Following", None)
        if following:
            answer["PendingDeploymentSummary"] = {"EndpointConfigName": following, "ProductionVariants": []}
        return _without_empty(ActionResult(answer))

    def delete_endpoint(self: Any) -> ActionResult:
        name = self._get_param("EndpointName")
        endpoint = self.sagemaker_backend.endpoints.get(name)
        if endpoint and endpoint.endpoint_status in ("Creating", "Updating"):
            raise ValidationError(
                message=f'Cannot delete endpoint "{name}" while it is {endpoint.endpoint_status}'
            )
        self.sagemaker_backend.delete_endpoint(name)
        return EmptyResult()

    yield from {name: made for name, made in locals().items() if name != "original"}.items()


def _update(backend: SageMakerModelBackend, param: Any) -> ActionResult:
    backend.describe_endpoint(param("EndpointName"))
    config = backend.describe_endpoint_config(param("EndpointConfigName"))
    endpoint = backend.endpoints[param("EndpointName")]
    if endpoint.endpoint_status != "InService":
        raise ValidationError(message=f"Cannot update in-progress endpoint: {endpoint.endpoint_status}")
    endpoint.last_deployment_config = param("DeploymentConfig")
    reason = script.updates.pop(0) if script.updates else None
    endpoint.following = config["EndpointConfigName"]
    if not param("RetainAllVariantProperties"):
        endpoint.production_variants = endpoint._process_production_variants(config["ProductionVariants"])
    _begin(endpoint, "Updating", "InService", reason)
    return ActionResult({"EndpointArn": endpoint.arn})


def _begin(endpoint: FakeEndpoint, now: str, then: str, reason: str | None) -> None:
    endpoint.endpoint_status, endpoint.then, endpoint.num_busy = now, then, script.num_busy
    endpoint.failure_reason, endpoint.pending = None, reason
    if not script.num_busy:
        _end(endpoint)


def _go_on(endpoint: FakeEndpoint) -> None:
    if endpoint.endpoint_status in ("Creating", "Updating"):
        endpoint.num_busy -= 1
        if endpoint.num_busy <= 0 or script.is_finished:
            _end(endpoint)


def _end(endpoint: FakeEndpoint) -> None:
    endpoint.endpoint_status, endpoint.failure_reason = endpoint.then, endpoint.pending
    following = getattr(endpoint, "following", None)
    if following and not endpoint.pending:
        endpoint.endpoint_config_name = following
    endpoint.following = None


def _without_empty(answer: ActionResult) -> ActionResult:
    """SageMaker leaves out what was not asked for; moto has an empty structure, which an SDK refuses."""
    return ActionResult({name: value for name, value in answer.result.items() if value != {}})


def _refuse_taken(kind: str, name: str, names: Any) -> None:
    if name in names:
        raise ValidationError(message=f'Cannot create already existing {kind} "{name}".')
