"""How many requests at once an instance is good for."""

import pytest

from gptj_serve.aws.machines.capacity import cache_tokens, capacity
from gptj_serve.aws.machines.instances import all_gpu_instances, find_instance

BIG = find_instance("ml.p5.4xlarge")
SMALL = find_instance("ml.g4dn.2xlarge")


@pytest.mark.parametrize(
    ("environment", "num_requests"),
    [
        ({}, 64),
        ({"GPTJ_ENGINE": "auto", "GPTJ_MAX_BATCH_SIZE": "auto"}, 64),
        ({"GPTJ_MAX_BATCH_SIZE": "16"}, 16),
        ({"GPTJ_ENGINE": "deepspeed"}, 8),
        ({"GPTJ_ENGINE": "hf", "GPTJ_MAX_BATCH_SIZE": "2"}, 2),
    ],
)
def test_where_memory_suffices_the_batch_decides(environment: dict[str, str], num_requests: int) -> None:
    assert capacity(environment, BIG, 512).num_requests == num_requests


def test_on_a_small_gpu_its_cache_decides() -> None:
    assert SMALL is not None
    assert SMALL.gpu is not None
    tokens = cache_tokens(SMALL.gpu, 64)
    found = capacity({}, SMALL, 512)
    assert 1 < found.num_requests == tokens // 512 < 64
    assert str(tokens) in found.why
    assert capacity({}, SMALL, 256).num_requests == tokens // 256
    assert capacity({"GPTJ_MAX_BATCH_SIZE": "2"}, SMALL, 512).num_requests == 2


def test_the_target_leaves_room_to_grow() -> None:
    assert capacity({}, BIG, 512).target == 44  # 70 % of 64
    assert capacity({"GPTJ_MAX_BATCH_SIZE": "1"}, BIG, 512).target == 1


def test_an_unknown_instance_is_taken_to_suffice() -> None:
    assert capacity({}, None, 512).num_requests == 64
    assert capacity({}, find_instance("ml.m5.xlarge"), 512).num_requests == 64


def test_every_gpu_is_good_for_at_least_one() -> None:
    assert all(capacity({}, one, 2048).num_requests >= 1 for one in all_gpu_instances())
