"""Inference components for moto, which has none: the same server, real HTTP, botocore's own requests.

Answers are checked against botocore's model of SageMaker: one that lacks a member, or has one of its own, is
an error. As in SageMaker, a component outlives its endpoint, and one that changes cannot be deleted. A change
lasts until the component has been described once.
"""

from enum import Enum
from functools import cache
from typing import Any

from botocore.session import get_session
from moto.applicationautoscaling import models as scaling_models
from moto.applicationautoscaling import responses as scaling_responses
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import utcnow
from moto.sagemaker.exceptions import ValidationError
from moto.sagemaker.models import SageMakerModelBackend, sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse
from moto.sagemaker.utils import arn_formatter

Component = dict[str, Any]

failures: list[str | None] = []
"""FailureReason of each creation and update to come, None for one that works; at the end all work."""

_PRIVATE = ("Tags", "then")


def install() -> None:
    """Let moto's server in this process have inference components, and scale them."""
    for name in (
        "create_inference_component",
        "update_inference_component",
        "describe_inference_component",
        "list_inference_components",
        "delete_inference_component",
    ):
        setattr(SageMakerResponse, name, globals()[f"_{name}"])
    names = {one.name: one.value for one in scaling_models.ScalableDimensionValueSet}
    names["SAGEMAKER_COMPONENT"] = "sagemaker:inference-component:DesiredCopyCount"
    for module in (scaling_models, scaling_responses):
        module.ScalableDimensionValueSet = Enum("ScalableDimensionValueSet", names)  # type: ignore[attr-defined]
    list_tags = SageMakerModelBackend.list_tags

    def list_all_tags(self: SageMakerModelBackend, *, arn: str, **pages: Any) -> Any:
        name = arn.partition(":inference-component/")[2]
        return (_of(self)[name]["Tags"], None) if name else list_tags(self, arn=arn, **pages)

    SageMakerModelBackend.list_tags = list_all_tags  # type: ignore[method-assign]
    check = SageMakerModelBackend.validate_production_variants

    def check_models(self: SageMakerModelBackend, variants: list[dict[str, Any]]) -> None:
        check(self, [one for one in variants if "ModelName" in one])

    SageMakerModelBackend.validate_production_variants = check_models  # type: ignore[method-assign]


def components(account: str = "123456789012", region: str = "eu-west-1") -> dict[str, Component]:
    """Every component there is, by name, as it is described: a test may change it."""
    return _of(sagemaker_backends[account][region])


def _create_inference_component(self: SageMakerResponse) -> ActionResult:
    name, endpoint = self._get_param("InferenceComponentName"), self._get_param("EndpointName")
    backend = self.sagemaker_backend
    if name in _of(backend):
        raise ValidationError(message=f"Cannot create already existing inference component {name}.")
    described = backend.describe_endpoint(endpoint)
    specification = self._get_param("Specification")
    backend.describe_model(specification["ModelName"])
    count = self._get_param("RuntimeConfig")["CopyCount"]
    reason = failures.pop(0) if failures else None
    _of(backend)[name] = {
        "InferenceComponentName": name,
        "InferenceComponentArn": arn_formatter("inference-component", name, backend.account_id, self.region),
        "EndpointName": endpoint,
        "EndpointArn": described["EndpointArn"],
        "VariantName": self._get_param("VariantName"),
        "Specification": specification,
        "RuntimeConfig": {"DesiredCopyCount": count, "CurrentCopyCount": count},
        "CreationTime": utcnow(),
        "LastModifiedTime": utcnow(),
        "InferenceComponentStatus": "Creating",
        "Tags": self._get_param("Tags") or [],
        "then": "Failed" if reason else "InService",
        **({"FailureReason": reason} if reason else {}),
    }
    return _answer(
        "CreateInferenceComponent", {"InferenceComponentArn": _of(backend)[name]["InferenceComponentArn"]}
    )


def _update_inference_component(self: SageMakerResponse) -> ActionResult:
    found = _find(self)
    specification = self._get_param("Specification")
    self.sagemaker_backend.describe_model(specification["ModelName"])
    reason = failures.pop(0) if failures else None
    found["InferenceComponentStatus"] = "Updating"
    if reason:  # what ran before runs on
        found["FailureReason"] = reason
    else:
        found["Specification"] = specification
    return _answer("UpdateInferenceComponent", {"InferenceComponentArn": found["InferenceComponentArn"]})


def _describe_inference_component(self: SageMakerResponse) -> ActionResult:
    found = _find(self)
    answer = _answer("DescribeInferenceComponent", {key: found[key] for key in found if key not in _PRIVATE})
    if found.get("then") and found["InferenceComponentStatus"] in ("Creating", "Updating"):
        found["InferenceComponentStatus"] = found["then"]
    return answer


def _list_inference_components(self: SageMakerResponse) -> ActionResult:
    endpoint = self._get_param("EndpointNameEquals")
    left_out = ("Specification", "RuntimeConfig", "FailureReason", *_PRIVATE)
    listed = [
        {key: one[key] for key in one if key not in left_out}
        for one in _of(self.sagemaker_backend).values()
        if one["EndpointName"] == endpoint
    ]
    return _answer("ListInferenceComponents", {"InferenceComponents": listed})


def _delete_inference_component(self: SageMakerResponse) -> ActionResult:
    found = _find(self)
    if found["InferenceComponentStatus"] in ("Creating", "Updating"):
        raise ValidationError(
            message="Cannot delete inference component "
            f"{found['InferenceComponentName']} while it is in state UPDATE_RC_IN_PROGRESS."
        )
    del _of(self.sagemaker_backend)[found["InferenceComponentName"]]
    return EmptyResult()


def _find(self: SageMakerResponse) -> Component:
    name = self._get_param("InferenceComponentName")
    found = _of(self.sagemaker_backend).get(name)
    if found is None:
        arn = arn_formatter("inference-component", name, self.sagemaker_backend.account_id, self.region)
        raise ValidationError(message=f"Could not find inference component '{arn}'.")
    return found


def _of(backend: SageMakerModelBackend) -> dict[str, Component]:
    # in the backend's own dictionary, so that a reset empties it
    kept: dict[str, Component] = backend.__dict__.setdefault("inference_components", {})
    return kept


def _answer(operation: str, answer: dict[str, Any]) -> ActionResult:
    shape = _model().operation_model(operation).output_shape
    _check(answer, shape, operation)
    return ActionResult(answer)


@cache
def _model() -> Any:
    return get_session().get_service_model("sagemaker")


def _check(value: Any, shape: Any, where: str) -> None:
    if shape.type_name == "structure":
        unknown = value.keys() - shape.members.keys()
        missing = set(shape.required_members) - value.keys()
        assert not unknown, f"{where}: {unknown}"
        assert not missing, f"{where}: {missing}"
        for name, member in value.items():
            _check(member, shape.members[name], f"{where}.{name}")
    elif shape.type_name == "list":
        for item in value:
            _check(item, shape.member, f"{where}[]")
