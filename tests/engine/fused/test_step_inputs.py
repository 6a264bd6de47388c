"""A step that is padded to a graph's shape computes what it computes without."""

from dataclasses import replace

import pytest
import torch

from gptj_serve.engine.fused.graphs import PrefillGraphs
from gptj_serve.engine.fused.kernels.plain import PlainKernels
from gptj_serve.engine.fused.kernels.protocol import State
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.fused.step_inputs import PrefillShape, StepInputs, prompt_parts
from support.prefill_rows import BEGINNING, CONTINUING, DECODES, LIMITS, row
from support.random_states import MAX_CONTEXT, architecture, copy_of, random_state, random_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def state() -> State:
    of = architecture(64)
    return random_state(of, random_weights(of, CPU, torch.float32), num_blocks=40)


@pytest.fixture(scope="module")
def inputs() -> StepInputs:
    return StepInputs(LIMITS, MAX_CONTEXT + 1)


@pytest.mark.parametrize(
    ("prompts", "decodes"),
    [(BEGINNING, ()), (BEGINNING, DECODES), (CONTINUING, ()), (CONTINUING, DECODES), (BEGINNING[1:], ())],
)
def test_padding_changes_nothing(
    state: State, inputs: StepInputs, prompts: tuple[Row, ...], decodes: tuple[Row, ...]
) -> None:
    exact = PrefillShape.of(prompts, decodes)
    padded = replace(
        exact,
        num_tokens=exact.num_tokens + 11,
        num_prompts=exact.num_prompts + 2,
        num_decodes=exact.num_decodes + 3,
        num_choosing=exact.num_choosing + 4,
        num_keys=exact.num_keys + 9 if exact.num_keys else 0,
    )
    parts = prompt_parts(prompts, len(decodes))
    found = []
    for shape in (exact, padded):
        one = copy_of(state)
        ints = torch.full((inputs.num_prefill_ints(shape),), 77, dtype=torch.int32)
        inputs.upload_prefill(prompts, decodes, shape, ints)
        FusedModel(one, PlainKernels(one)).prefill(inputs.prefill_batch(shape, ints, parts))
        found.append(one)
    same = {"rtol": 1e-5, "atol": 1e-5}
    num = exact.num_choosing
    torch.testing.assert_close(found[1].scratch.logits_TV[:num], found[0].scratch.logits_TV[:num], **same)
    assert found[1].scratch.chosen_2T[0, :num].equal(found[0].scratch.chosen_2T[0, :num])
    assert found[1].history_SC[:-1].equal(found[0].history_SC[:-1])
    for kind in ("keys_LNHSE", "values_LNHSE"):
        caches = (getattr(of.cache, kind) for of in (found[1], found[0]))
        torch.testing.assert_close(*caches, **same)


def test_padding_alone_leaves_nothing(state: State, inputs: StepInputs) -> None:
    """What a graph is captured with."""
    one, shape = copy_of(state), PrefillShape(32, 3, 2, 4, 60, 32)
    ints = torch.full((inputs.num_prefill_ints(shape),), 77, dtype=torch.int32)
    inputs.upload_prefill([], [], shape, ints)
    FusedModel(one, PlainKernels(one)).prefill(inputs.prefill_batch(shape, ints))
    assert one.history_SC[:-1].equal(state.history_SC[:-1])
    assert one.cache.keys_LNHSE.equal(state.cache.keys_LNHSE)


def test_ids_that_the_host_knows_go_into_the_history(state: State, inputs: StepInputs) -> None:
    one = copy_of(state)
    before = one.history_SC.clone()
    shape = PrefillShape.of(CONTINUING, DECODES)
    ints = torch.zeros(inputs.num_prefill_ints(shape), dtype=torch.int32)
    inputs.upload_prefill(CONTINUING, DECODES, shape, ints)
    batch = inputs.prefill_batch(shape, ints, prompt_parts(CONTINUING, 1))
    FusedModel(one, PlainKernels(one)).prefill(batch)
    for of in CONTINUING:
        assert of.token_ids is not None
        assert tuple(one.history_SC[of.slot, of.start : of.end].tolist()) == of.token_ids
        assert one.history_SC[of.slot, : of.start].equal(before[of.slot, : of.start])
    assert one.history_SC[3, :31].equal(before[3, :31])  # the decoded one's was there


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"num_tokens": 26}, False),
        ({"num_prompts": 1}, False),
        ({"num_decodes": 0}, False),
        ({"num_choosing": 1}, False),
        ({"num_tokens": 512, "max_queries": 512}, True),
        ({"max_queries": 20}, False),
    ],
)
def test_a_shape_holds_what_is_at_most_as_large(changes: dict[str, int], fits: bool) -> None:
    exact = PrefillShape.of(BEGINNING, DECODES)
    assert exact == PrefillShape(27, 2, 1, 2, 0, 21)
    assert replace(exact, **changes).holds(exact) is fits


def test_keys_of_prompts_that_continue_need_room() -> None:
    shape = PrefillShape.of(CONTINUING, [])
    assert shape.num_keys == 58 + 5 + 19
    assert not PrefillShape.of([row(0, 0, 300)], []).holds(shape)


@pytest.mark.parametrize(
    ("prompts", "decodes", "num_tokens", "num_decodes"),
    [
        ((row(0, 0, 16),), (), 16, 0),
        ((row(0, 0, 150), row(1, 0, 43)), (), 208, 0),
        ((row(0, 0, 16),), DECODES, 64, 16),
        ((row(0, 37, 60),), tuple(row(slot, 9, 1, decodes=True) for slot in range(1, 18)), 128, 64),
        (tuple(row(slot, 0, 2) for slot in range(9)), (), None, None),  # too many prompts
        ((row(0, 0, 257),), (), None, None),  # more than a step of these limits has
    ],
)
def test_steps_take_the_smallest_graph_that_holds_them(
    state: State,
    inputs: StepInputs,
    prompts: tuple[Row, ...],
    decodes: tuple[Row, ...],
    num_tokens: int | None,
    num_decodes: int | None,
) -> None:
    model = FusedModel(state, PlainKernels(state))
    graphs = PrefillGraphs(model, inputs, LIMITS, can_capture=True, device=CPU)
    found = graphs.shape_for(PrefillShape.of(prompts, decodes))
    assert (found and found.num_tokens, found and found.num_decodes) == (num_tokens, num_decodes)


def test_without_a_gpu_steps_are_computed_as_they_are(state: State, inputs: StepInputs) -> None:
    one = copy_of(state)
    model = FusedModel(one, PlainKernels(one))
    graphs = PrefillGraphs(model, inputs, LIMITS, can_capture=False, device=CPU)
    graphs.capture()
    graphs.prefill(BEGINNING, DECODES)
    other = copy_of(state)
    shape = PrefillShape.of(BEGINNING, DECODES)
    ints = torch.zeros(inputs.num_prefill_ints(shape), dtype=torch.int32)
    inputs.upload_prefill(BEGINNING, DECODES, shape, ints)
    parts = prompt_parts(BEGINNING, 1)
    FusedModel(other, PlainKernels(other)).prefill(inputs.prefill_batch(shape, ints, parts))
    assert one.scratch.logits_TV[:2].equal(other.scratch.logits_TV[:2])
