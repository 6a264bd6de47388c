"""The table of instance types, held against botocore's own list."""

import botocore.session
import pytest

from gptj_serve.aws.instances import DRIVER_550, all_gpu_instances, find_instance, one_gpu_sibling, why_not


def botocore_enum(shape: str) -> set[str]:
    return set(botocore.session.get_session().get_service_model("sagemaker").shape_for(shape).enum)


def test_every_type_and_host_image_exists() -> None:
    types = all_gpu_instances()
    assert {one.name for one in types} <= botocore_enum("ProductionVariantInstanceType")
    assert {one.ami for one in types} <= botocore_enum("ProductionVariantInferenceAmiVersion")


def test_every_gpu_type_that_sagemaker_hosts_is_known_or_refused_with_a_reason() -> None:
    for name in botocore_enum("ProductionVariantInstanceType"):
        if find_instance(name) is None:
            assert "does not work" in why_not(name), name


@pytest.mark.parametrize("family", ["g4dn", "p3", "g5", "g6", "g6e", "p4d", "p4de", "p5", "p5e", "p5en"])
def test_gpu_families(family: str) -> None:
    types = [one for one in all_gpu_instances() if one.family == family]
    assert types
    assert all(one.takes_volume == (family == "p3") for one in types)
    assert all((one.warning is not None) == (family == "p3") for one in types)
    assert all((one.ami == DRIVER_550) == (family == "p3") for one in types)


def test_cpu_types_are_for_tests() -> None:
    instance = find_instance("ml.m5.xlarge")
    assert instance is not None
    assert (instance.gpu, instance.ami, instance.price_usd_hour) == (None, None, 0.23)
    assert "tests" in str(instance.warning)
    assert instance.takes_volume
    with_disk = find_instance("ml.m5d.xlarge")
    assert with_disk is not None
    assert not with_disk.takes_volume


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ml.g4dn.2xlrge", "did you mean ml.g4dn.2xlarge"),
        ("g5.2xlarge", "did you mean ml.g5.2xlarge"),
        ("nonsense", "did you mean ml.g4dn.2xlarge"),
        ("ml.p2.xlarge", "K80"),
        ("ml.g7e.2xlarge", "Blackwell"),
        ("ml.p6-b200.48xlarge", "Blackwell"),
        ("ml.inf2.xlarge", "NVIDIA"),
        ("ml.m6g.large", "ARM"),
    ],
)
def test_others_are_refused_with_a_way_out(name: str, said: str) -> None:
    assert find_instance(name) is None
    assert said in why_not(name)


def test_one_gpu_sibling() -> None:
    def sibling(name: str) -> str | None:
        instance = find_instance(name)
        assert instance is not None
        found = one_gpu_sibling(instance)
        return found and found.name

    assert sibling("ml.g5.48xlarge") == "ml.g5.xlarge"
    assert sibling("ml.p4d.24xlarge") is None
    assert sibling("ml.p5.48xlarge") == "ml.p5.4xlarge"


def test_description() -> None:
    instance = find_instance("ml.g4dn.12xlarge")
    assert instance is not None
    assert instance.describe() == "4 x T4, 14.6 GiB, $4.89 an hour"
