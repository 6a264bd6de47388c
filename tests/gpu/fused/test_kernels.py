"""The CUDA kernels against their twin in plain PyTorch, on random models, caches and batches.

The truth is the twin in float32 on the same weights. The kernels, which round to float16 between the
products, may err twice as much as the twin in float16 does (and a little, where that is near zero).
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gptj_serve.engine.failures import BackendDead
from gptj_serve.engine.fused.kernels.cuda import CudaKernels
from gptj_serve.engine.fused.kernels.library import compile_library, find_nvcc
from gptj_serve.engine.fused.kernels.plain import PlainKernels
from gptj_serve.engine.fused.kernels.protocol import State
from gptj_serve.engine.fused.model import FusedModel
from gptj_serve.engine.fused.schedule.plan import Row
from gptj_serve.engine.fused.step_inputs import PrefillShape, StepInputs, prompt_parts
from gptj_serve.models.architecture import Architecture
from support.prefill_rows import BEGINNING, CONTINUING, DECODES, LIMITS
from support.random_states import (
    MAX_CONTEXT,
    Batch,
    architecture,
    batch,
    copy_of,
    mixed_step,
    random_state,
    random_weights,
    rms,
    spoil_what_is_not_cached,
)

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

NUM_BLOCKS = 1200
LENGTHS = (0, 1, 14, 15, 16, 17, 31, 127, 128, 129, 255, 500, 1023, 1024, 1900, 2047)


def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def make_state(of: Architecture) -> State:
    return random_state(of, random_weights(of, device(), torch.float16), NUM_BLOCKS)


def decoded(
    state: State, kernels: CudaKernels | PlainKernels, of: Batch, *, large: bool = False
) -> torch.Tensor:
    """Logits of one step."""
    FusedModel(state, kernels).decode(of.tokens, through_cublas=large)
    torch.cuda.synchronize()
    return state.scratch.logits_TV[: len(of.positions)].clone()


def check(state: State, library: Path, of: Batch, *, large: bool) -> None:
    spoil_what_is_not_cached(state, of)
    exact, plain, cuda = copy_of(state, torch.float32), copy_of(state), state
    truth_TV = decoded(exact, PlainKernels(exact), of)
    plain_TV = decoded(plain, PlainKernels(plain), of)
    cuda_TV = decoded(cuda, CudaKernels(library, cuda), of, large=large)
    real = [row for row, position in enumerate(of.positions) if position >= 0]
    for row in real:
        allowed = max(2 * rms(plain_TV[row], truth_TV[row]), 2e-3)
        assert rms(cuda_TV[row], truth_TV[row]) <= allowed, (row, of.positions[row])
        chosen = int(cuda.scratch.chosen_2T[0, row])
        assert chosen == int(cuda_TV[row].argmax())
        assert int(cuda.history_SC.view(-1)[of.tokens.history_rows_T[row] + 1]) == chosen
    for kind in ("keys_LNHSE", "values_LNHSE"):
        got, wanted = getattr(cuda.cache, kind).float(), getattr(exact.cache, kind)
        assert bool((got.isnan() == wanted.isnan()).all())
        torch.testing.assert_close(got.nan_to_num(), wanted.nan_to_num(), rtol=2e-2, atol=3e-2)
    assert not cuda.scratch.counters.any()


@pytest.mark.parametrize("head_dim", [64, 128, 256])
class TestDecode:
    @pytest.mark.parametrize("num_rows", [1, 2, 7, 8, 9, 16])
    def test_small_batches(self, library: Path, head_dim: int, num_rows: int) -> None:
        state = make_state(architecture(head_dim))
        check(state, library, batch(state, LENGTHS[:num_rows]), large=False)

    @pytest.mark.parametrize("position", LENGTHS)
    def test_every_length_alone(self, library: Path, head_dim: int, position: int) -> None:
        state = make_state(architecture(head_dim))
        check(state, library, batch(state, [position]), large=False)

    def test_large_batches_and_padding(self, library: Path, head_dim: int) -> None:
        state = make_state(architecture(head_dim))
        positions = [*LENGTHS, *(-1 for _ in range(3)), *(7 * row for row in range(30)), -1]
        check(state, library, batch(state, positions), large=True)

    def test_padding_in_a_small_batch(self, library: Path, head_dim: int) -> None:
        state = make_state(architecture(head_dim))
        check(state, library, batch(state, [-1, 300, -1, 5]), large=False)

    def test_a_row_does_not_depend_on_the_others(self, library: Path, head_dim: int) -> None:
        """Bit for bit, up to the largest batch that the kernels decode themselves."""
        state = make_state(architecture(head_dim))
        of = batch(state, LENGTHS)
        together_TV = decoded(copied := copy_of(state), CudaKernels(library, copied), of)
        for row in range(len(LENGTHS)):
            alone = Batch(
                replace(
                    of.tokens,
                    positions_T=of.tokens.positions_T[row : row + 1],
                    cache_rows_T=of.tokens.cache_rows_T[row : row + 1],
                    history_rows_T=of.tokens.history_rows_T[row : row + 1],
                    tables_TW=of.tokens.tables_TW[row : row + 1],
                ),
                (LENGTHS[row],),
                [of.tables[row]],
            )
            alone_TV = decoded(copied := copy_of(state), CudaKernels(library, copied), alone)
            assert torch.equal(alone_TV[0], together_TV[row]), row


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_prompts_and_decoding_in_one_step(library: Path, head_dim: int) -> None:
    """Two prompts begin while two sequences are decoded: each as if alone."""
    state = make_state(architecture(head_dim))
    exact, plain = copy_of(state, torch.float32), copy_of(state)
    found = []
    for one, kernels in (
        (exact, PlainKernels(exact)),
        (plain, PlainKernels(plain)),
        (state, CudaKernels(library, state)),
    ):
        FusedModel(one, kernels).prefill(mixed_step(one))
        torch.cuda.synchronize()
        found.append(one.scratch.logits_TV[:4].clone())
    truth_TV, plain_TV, cuda_TV = found
    for row in range(4):
        allowed = max(2 * rms(plain_TV[row], truth_TV[row]), 2e-3)
        assert rms(cuda_TV[row], truth_TV[row]) <= allowed, row
    assert state.scratch.chosen_2T[0, :4].tolist() == cuda_TV.argmax(dim=1).tolist()
    for kind in ("keys_LNHSE", "values_LNHSE"):
        got, wanted = getattr(state.cache, kind).float(), getattr(exact.cache, kind)
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=3e-2)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("prompts", [BEGINNING, CONTINUING])
def test_chunks_of_prompts_beside_decoding(library: Path, head_dim: int, prompts: tuple[Row, ...]) -> None:
    """Prompts that begin, and such as find their first tokens in the cache."""
    state = make_state(architecture(head_dim))
    exact = copy_of(state, torch.float32)
    shape = PrefillShape.of(prompts, DECODES)
    inputs = StepInputs(LIMITS, MAX_CONTEXT + 1)
    ints = torch.empty(inputs.num_prefill_ints(shape), dtype=torch.int32, device="cuda")
    inputs.upload_prefill(prompts, DECODES, shape, ints)
    step = inputs.prefill_batch(shape, ints, prompt_parts(prompts, len(DECODES)))
    FusedModel(exact, PlainKernels(exact)).prefill(step)
    FusedModel(state, CudaKernels(library, state)).prefill(step)
    for place in range(shape.num_choosing):
        assert rms(state.scratch.logits_TV[place], exact.scratch.logits_TV[place]) <= 0.01, place
    assert state.history_SC.equal(exact.history_SC)


@pytest.mark.parametrize("inner", [64, 192, 4096])
def test_other_widths(library: Path, inner: int) -> None:
    of = architecture(64, num_heads=3, inner=inner, rotary_dim=64, vocab_size=17, num_layers=1)
    state = make_state(of)
    check(state, library, batch(state, [3, 40]), large=False)


def test_kernels_overlap_only_where_their_code_waits(library: Path, request: pytest.FixtureRequest) -> None:
    is_native = "7.5 as PTX" not in request.node.name
    wanted = is_native and torch.cuda.get_device_capability() >= (9, 0)
    assert CudaKernels(library, make_state(architecture(64))).overlap == wanted


def test_a_nan_in_one_sequence_stays_there(library: Path) -> None:
    state = make_state(architecture(128))
    of = batch(state, [40, 41, 42])
    state.cache.keys_LNHSE[:, of.tables[1][0]] = float("nan")
    logits_TV = decoded(state, CudaKernels(library, state), of)
    assert logits_TV.isfinite().all(dim=1).tolist() == [True, False, True]
    assert state.scratch.chosen_2T[1].view(torch.float32)[:3].isfinite().tolist() == [True, False, True]


def test_equal_logits_give_the_first(library: Path) -> None:
    state = make_state(architecture(64))
    state.weights.head.tensors[0].zero_()
    state.weights.head_bias_V.zero_()
    state.weights.head_bias_V[[100, 7, 900]] = 1.0
    decoded(state, CudaKernels(library, state), batch(state, [5]))
    assert int(state.scratch.chosen_2T[0, 0]) == 7


def test_kernels_of_another_gpu_are_said(tmp_path: Path) -> None:
    nvcc = find_nvcc(os.environ)
    assert nvcc is not None
    if torch.cuda.get_device_capability()[0] == 7:
        pytest.skip("a GPU that runs what is built for 7.5")
    compile_library(nvcc, ["7.5"], tmp_path / "libfused.so")
    state = make_state(architecture(64))
    with pytest.raises(BackendDead, match="no kernel image"):
        CudaKernels(tmp_path / "libfused.so", state).embed(batch(state, [1]).tokens)
