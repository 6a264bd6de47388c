"""What ``scripts/status`` makes of AWS's descriptions, whatever state things are in."""

import datetime
from typing import Any

from gptj_serve.aws.endpoint.inventory import Inventory, Scaling
from gptj_serve.aws.endpoint.lookup import Resources
from gptj_serve.aws.endpoint.report import Report, hints, make_report, total

NOW = datetime.datetime(2026, 11, 24, 12, 0, tzinfo=datetime.timezone.utc)
CONFIG = {
    "ProductionVariants": [{"VariantName": "main", "InstanceType": "ml.g4dn.2xlarge", "ModelName": "m"}]
}


def report(
    endpoint: dict[str, Any] | None = None,
    config: dict[str, Any] | None = CONFIG,
    *,
    alarms: tuple[dict[str, Any], ...] = (),
    components: tuple[dict[str, Any], ...] = (),
    scaling: tuple[Scaling, ...] = (),
    models: tuple[dict[str, Any], ...] = (),
    **variant: Any,
) -> Report:
    """Of an endpoint with one variant."""
    described = {
        "EndpointName": "gpt-j",
        "EndpointStatus": "InService",
        "EndpointConfigName": "gpt-j-11111111",
        "LastModifiedTime": NOW,
        "ProductionVariants": [
            {"VariantName": "main", "CurrentInstanceCount": 1, "DesiredInstanceCount": 1, **variant}
        ],
        **(endpoint or {}),
    }
    resources = Resources(described, ("gpt-j-11111111", "gpt-j-22222222"), ("m", "gpt-j-33333333"), alarms)
    return make_report(Inventory("gpt-j", resources, components, scaling), config, models)


def test_two_instances_cost_twice_as_much() -> None:
    assert report(CurrentInstanceCount=2, DesiredInstanceCount=2).usd_an_hour == 1.88


def test_no_instance_costs_nothing_even_if_the_price_is_unknown() -> None:
    config = {"ProductionVariants": [{"VariantName": "main", "InstanceType": "ml.p5.4xlarge"}]}
    assert report(config=config, CurrentInstanceCount=0, DesiredInstanceCount=0).usd_an_hour == 0
    assert report(config=config).usd_an_hour is None


def test_a_lost_configuration_makes_the_price_unknown() -> None:
    found = report(config=None)
    assert found.fleets[0].instance_type is None
    assert found.usd_an_hour is None


def test_what_is_not_known_makes_no_sum() -> None:
    assert total([1.0, 0.5]) == 1.5
    assert total([1.0, None]) is None
    assert total([]) == 0


def test_a_failure_is_shown_with_its_reason() -> None:
    found = report({"EndpointStatus": "Failed", "FailureReason": "no luck"})
    assert found.failure == "no luck"
    assert any("/aws/sagemaker/Endpoints/gpt-j" in hint for hint in hints(found))
    # its instances are described on, but there are none, and nothing is to pay
    assert (found.usd_an_hour, found.fleets) == (0, ())
    assert report({"EndpointStatus": "UpdateRollbackFailed"}).usd_an_hour == 0.94


def test_instances_that_are_missing() -> None:
    assert any("1 of 3 instances" in hint for hint in hints(report(DesiredInstanceCount=3)))
    assert list(hints(report())) == []


def test_an_update_that_is_under_way() -> None:
    pending = {
        "EndpointConfigName": "gpt-j-22222222",
        "ProductionVariants": [{"VariantName": "main", "VariantStatus": [{"Status": "Baking"}]}],
    }
    assert report({"PendingDeploymentSummary": pending}).update == "to gpt-j-22222222: Baking"


def test_alarms_that_roll_updates_back() -> None:
    alarms = (
        {"AlarmName": "gptj-serve/gpt-j/update-latency", "StateValue": "ALARM", "StateReason": "too slow"},
        {"AlarmName": "gptj-serve/gpt-j/from-zero", "StateValue": "OK"},
    )
    rollback = {"Alarms": [{"AlarmName": "gptj-serve/gpt-j/update-latency"}, {"AlarmName": "somebody's"}]}
    found = report({"LastDeploymentConfig": {"AutoRollbackConfiguration": rollback}}, alarms=alarms)
    assert [(one.name.rpartition("/")[2], one.state, one.rolls_back) for one in found.alarms] == [
        ("update-latency", "ALARM", True),
        ("from-zero", "OK", False),
        ("somebody's", "not ours", True),
    ]
    assert any("rolled back: too slow" in hint for hint in hints(found))


def test_a_component_that_lacks_copies_or_has_shrunk() -> None:
    def with_copies(current: int, desired: int) -> list[str]:
        component = {
            "InferenceComponentName": "gpt-j",
            "InferenceComponentStatus": "InService",
            "RuntimeConfig": {"CurrentCopyCount": current, "DesiredCopyCount": desired},
        }
        return list(hints(report(components=(component,))))

    assert with_copies(1, 1) == []
    assert "0 of 1 copies are there" in with_copies(0, 1)
    assert any("shrunk to zero" in hint for hint in with_copies(0, 0))


def test_secrets_in_a_model_s_environment_are_not_shown() -> None:
    environment = {"GPTJ_MAX_QUEUE": "5", "HF_TOKEN": "hf_secret", "TENSOR_PARALLEL_DEGREE": "1"}
    model = {"ModelName": "m", "PrimaryContainer": {"Environment": environment}}
    found = report(models=(model,))
    assert found.models[0].settings == {"GPTJ_MAX_QUEUE": "5", "TENSOR_PARALLEL_DEGREE": "1"}
    assert "hf_secret" not in str(found)


def test_what_earlier_deployments_left() -> None:
    model = {"ModelName": "m", "PrimaryContainer": {}}
    found = report(models=(model,))
    assert found.left_over == ("configuration gpt-j-22222222", "model gpt-j-33333333")


def test_scaling_that_is_suspended() -> None:
    target = {
        "ResourceId": "endpoint/gpt-j/variant/main",
        "MinCapacity": 1,
        "MaxCapacity": 3,
        "SuspendedState": {"DynamicScalingOutSuspended": True},
    }
    found = report(scaling=(Scaling(target, ()),))
    assert found.scaling[0].target is None
    assert any("suspended" in hint for hint in hints(found))
