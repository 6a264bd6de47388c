"""The free list of cache blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj_serve.engine.fused.schedule.blocks import BlockPool
from gptj_serve.engine.scheduler import IntegrityError


def test_all_or_nothing() -> None:
    pool = BlockPool(4, 16)
    first = pool.allocate(3)
    assert first is not None
    assert (len(set(first)), pool.num_free) == (3, 1)
    assert pool.allocate(2) is None
    assert pool.num_free == 1
    pool.release(first)
    last = pool.allocate(4)
    assert last is not None
    assert sorted(last) == [0, 1, 2, 3]


@pytest.mark.parametrize(("positions", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_that_positions_need(positions: int, blocks: int) -> None:
    assert BlockPool(4, 16).num_needed(positions) == blocks


def test_a_block_released_twice_is_an_error() -> None:
    pool = BlockPool(2, 16)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(IntegrityError, match="released twice"):
        pool.release(blocks)


def test_the_check_finds_what_is_lost_held_twice_or_free_and_held() -> None:
    pool = BlockPool(3, 16)
    blocks = pool.allocate(2)
    assert blocks is not None
    pool.check([blocks])
    with pytest.raises(IntegrityError, match=f"block {blocks[1]} is free or held 0 times"):
        pool.check([blocks[:1]])
    with pytest.raises(IntegrityError, match=f"block {blocks[0]} is free or held 2 times"):
        pool.check([blocks, blocks[:1]])
    (free,) = {0, 1, 2} - set(blocks)
    with pytest.raises(IntegrityError, match=f"block {free} is free or held 2 times"):
        pool.check([[*blocks, free]])


@given(st.lists(st.one_of(st.integers(0, 6), st.none()), max_size=40))
def test_no_block_is_lost_or_given_twice(operations: list[int | None]) -> None:
    pool = BlockPool(10, 1)
    held: list[list[int]] = []
    for number in operations:
        if number is not None and (blocks := pool.allocate(number)) is not None:
            held.append(blocks)
        elif number is None and held:
            pool.release(held.pop(len(held) // 2))
        pool.check(held)
        assert pool.num_free == 10 - sum(map(len, held))
