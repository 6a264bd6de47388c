"""The table of instance types, held against botocore's own list."""

import botocore.session
import pytest

from gptj_serve.aws.machines.instances import (
    DRIVER_535,
    DRIVER_550,
    DRIVER_580,
    all_gpu_instances,
    find_instance,
    next_ami,
    one_gpu_sibling,
    why_not,
)


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
        ("ml.m99.2xlarge", "no such instance type; did you mean ml."),
        ("ml.m5.2xlrge", "did you mean ml.m5.2xlarge"),
        ("ml.t2.huge", "no such instance type; did you mean ml.t2.large"),
        ("ml.c5.", "no such instance type"),
    ],
)
def test_others_are_refused_with_a_way_out(name: str, said: str) -> None:
    assert find_instance(name) is None
    assert said in why_not(name)


def test_every_cpu_type_that_sagemaker_hosts_is_known_and_no_other() -> None:
    hosted = botocore_enum("ProductionVariantInstanceType")
    known = {name for name in hosted if (found := find_instance(name)) and found.gpu is None}
    assert {"ml.t2.medium", "ml.c6in.32xlarge", "ml.r7i.48xlarge", "ml.m5d.large"} <= known
    for name in known:
        assert find_instance(f"{name}r") is None


def test_the_next_host_image() -> None:
    def follow(name: str, used: str | None) -> str | None:
        instance = find_instance(name)
        assert instance is not None
        return next_ami(instance, used)

    assert follow("ml.g5.xlarge", DRIVER_580) == DRIVER_550
    assert follow("ml.g5.xlarge", DRIVER_550) == DRIVER_535
    assert follow("ml.g5.xlarge", DRIVER_535) is None
    assert follow("ml.p3.2xlarge", DRIVER_550) == DRIVER_535
    assert follow("ml.p3.2xlarge", DRIVER_580) == DRIVER_550
    assert follow("ml.m5.large", None) is None
    assert {DRIVER_550, DRIVER_535, DRIVER_580} <= botocore_enum("ProductionVariantInferenceAmiVersion")


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
