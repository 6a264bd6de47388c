"""The `deepspeed` engine: DeepSpeed's real injection, with a stand-in for its compiled op."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from gptj_serve import demo
from gptj_serve.engine.failures import BackendDead, BatchLost
from gptj_serve.engine.static.deepspeed import backend as engine
from gptj_serve.engine.static.deepspeed import inject as deepspeed_inject
from gptj_serve.engine.static.deepspeed import kernels as deepspeed_kernels
from gptj_serve.engine.static.deepspeed import rules as deepspeed_rules
from gptj_serve.engine.static.deepspeed.backend import DeepSpeedBackend, load_deepspeed
from gptj_serve.errors import StartupError
from support import deepspeed_standin as standin

GIB = 1 << 30
CONTEXT = 24
VOCAB = 97
RAGGED = [[1, 2, 3], [4], [9, 8, 7, 6, 5, 96]]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="the extra [deepspeed] is not installed"
)


def make_config(**changes: Any) -> GPTJConfig:
    numbers = {
        "vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    return GPTJConfig(**(numbers | changes))


def make_model(**changes: Any) -> GPTJForCausalLM:
    """A GPT-J whose every weight matters: sharp attention, no zero biases, no unit norms."""
    torch.manual_seed(0)
    model = GPTJForCausalLM(make_config(**changes)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        is_norm = ".ln_" in name and name.endswith("weight")
        parameter.copy_(torch.randn_like(parameter) * 0.3 + is_norm)
    return model


@pytest.fixture(scope="module")
def plain() -> GPTJForCausalLM:
    return make_model()


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Iterator[standin.Context]:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    state = standin.Context()
    with standin.installed(standin.build(state)):
        yield state


@pytest.fixture
def backend(context: standin.Context) -> DeepSpeedBackend:
    assert context.num_allocations == 0
    return load_deepspeed(make_model(), 3, None)


def greedy(backend: DeepSpeedBackend, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    steps = [backend.prefill(prompts).argmax(-1).tolist()]
    while len(steps) < num_tokens:
        steps.append(backend.decode(steps[-1]).argmax(-1).tolist())
    backend.reset()
    return [list(row) for row in zip(*steps, strict=True)]


def greedy_plain(plain: GPTJForCausalLM, prompt: Sequence[int], num_tokens: int) -> list[int]:
    tokens = plain.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return tokens[0, len(prompt) :].tolist()


@needs_deepspeed
class TestTokens:
    @pytest.mark.parametrize(
        "prompts",
        [[[5, 6, 7]], [[5]], [[5], [6]], [[1, 2], [3, 4], [5, 6]], RAGGED, [list(range(CONTEXT - 10))]],
        ids=["one", "one_token", "one_token_each", "even", "ragged", "to_the_limit"],
    )
    def test_greedy_tokens_equal_those_of_transformers(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM, prompts: list[list[int]]
    ) -> None:
        assert greedy(backend, prompts, 11) == [greedy_plain(plain, prompt, 11) for prompt in prompts]

    def test_logits_of_every_row_and_step_equal_those_of_transformers(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM
    ) -> None:
        continuation = [[11, 12, 13, 14], [21, 22, 23, 24], [31, 32, 33, 34]]
        steps = [backend.prefill(RAGGED)]
        steps += [backend.decode(ids).clone() for ids in zip(*continuation, strict=True)]
        for row, (prompt, added) in enumerate(zip(RAGGED, continuation, strict=True)):
            expected = plain(torch.tensor([prompt + added])).logits[0, len(prompt) - 1 :]
            got = torch.stack([logits_BV[row] for logits_BV in steps])
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_demo_model_says_what_it_says_on_transformers(self, context: standin.Context) -> None:
        def load() -> GPTJForCausalLM:
            return GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32).eval()

        backend = load_deepspeed(load(), 2, 64)
        prompts = [[100, 200, 300, 400], [7]]
        assert greedy(backend, prompts, 16) == [greedy_plain(load(), prompt, 16) for prompt in prompts]
        assert context.max_tokens == 64

    def test_heads_wider_than_the_workspace_rounds_to(self, context: standin.Context) -> None:
        changes = {"n_embd": 288, "n_head": 2, "rotary_dim": 16}
        backend = load_deepspeed(make_model(**changes), 1, None)
        assert greedy(backend, [[3, 1, 4]], 5) == [greedy_plain(make_model(**changes), [3, 1, 4], 5)]
        assert context.num_allocations == 1


@needs_deepspeed
class TestOneRequestAfterAnother:
    def test_one_token_prompt_knows_nothing_of_the_request_before(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM
    ) -> None:
        greedy(backend, RAGGED, 6)
        assert greedy(backend, [[5]], 6) == [greedy_plain(plain, [5], 6)]

    def test_stand_in_shows_the_leak_that_reset_cache_cures(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine, "reset_cache", lambda: None)
        greedy(backend, [[1, 2, 3]], 6)
        assert greedy(backend, [[5]], 6) != [greedy_plain(plain, [5], 6)]

    def test_smaller_and_larger_batches_share_one_workspace(
        self, backend: DeepSpeedBackend, context: standin.Context, plain: GPTJForCausalLM
    ) -> None:
        for prompts in ([[1]], RAGGED, RAGGED[:2], [[7, 7]]):
            assert greedy(backend, prompts, 4) == [greedy_plain(plain, prompt, 4) for prompt in prompts]
        assert context.num_allocations == 1
        assert (context.batch_size, context.max_tokens) == (3, CONTEXT)

    def test_prefill_and_decode_out_of_order_are_errors(self, backend: DeepSpeedBackend) -> None:
        with pytest.raises(RuntimeError, match="no batch is running"):
            backend.decode([1])
        backend.prefill([[1, 2]])
        with pytest.raises(RuntimeError, match=r"reset\(\)"):
            backend.prefill([[1, 2]])


@needs_deepspeed
class TestLimits:
    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            ([[1]] * 4, "4 rows; a batch has 1 to 3"),
            ([], "0 rows; a batch has 1 to 3"),
            ([[1], []], "at least one token"),
            ([[1], [1] * (CONTEXT + 1)], f"{CONTEXT + 1} tokens; the context holds {CONTEXT}"),
            ([[1, VOCAB]], "token ids must be 0 to 96"),
            ([[-1]], "token ids must be 0 to 96"),
        ],
    )
    def test_prefill_refuses_before_anything_runs(
        self, backend: DeepSpeedBackend, prompts: list[list[int]], message: str
    ) -> None:
        refuse_to_run(backend)
        with pytest.raises(ValueError, match=message):
            backend.prefill(prompts)

    def test_refused_prefill_leaves_the_backend_ready(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM
    ) -> None:
        with pytest.raises(ValueError, match="rows"):
            backend.prefill([[1]] * 4)
        assert greedy(backend, [[5]], 3) == [greedy_plain(plain, [5], 3)]

    @pytest.mark.parametrize(
        ("token_ids", "message"),
        [([1], "1 tokens for a batch of 2 rows"), ([1, VOCAB], "token ids must be 0 to 96")],
    )
    def test_decode_refuses_and_the_batch_can_go_on(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM, token_ids: list[int], message: str
    ) -> None:
        backend.prefill([[1, 2], [3]])
        with pytest.raises(ValueError, match=message):
            backend.decode(token_ids)
        logits_BV = backend.decode([4, 5])
        expected = plain(torch.tensor([[1, 2, 4]])).logits[0, -1]
        torch.testing.assert_close(logits_BV[0], expected, rtol=1e-4, atol=1e-4)

    def test_decode_stops_at_the_context(self, backend: DeepSpeedBackend) -> None:
        backend.prefill([[1] * (CONTEXT - 1)])
        backend.decode([1])
        refuse_to_run(backend)
        with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens; the context holds {CONTEXT}"):
            backend.decode([1])


def refuse_to_run(backend: DeepSpeedBackend) -> None:
    def run(*_: object) -> None:
        pytest.fail("a kernel ran")

    backend._run_blocks = (run,)


@needs_deepspeed
class TestFailures:
    @pytest.mark.parametrize("num_decoded", [0, 2])
    def test_exception_half_way_costs_the_batch_alone(
        self, backend: DeepSpeedBackend, plain: GPTJForCausalLM, num_decoded: int
    ) -> None:
        healthy = backend._run_blocks
        if num_decoded:
            backend.prefill([[1, 2, 3]])
            backend.decode([4])
        break_block(backend, RuntimeError("something"))
        with pytest.raises(BatchLost):
            backend.decode([5]) if num_decoded else backend.prefill([[1, 2, 3]])
        backend._run_blocks = healthy
        with pytest.raises(RuntimeError, match="no batch is running"):
            backend.decode([5])
        backend.reset()
        for prompts in ([[5]], RAGGED):
            assert greedy(backend, prompts, 5) == [greedy_plain(plain, prompt, 5) for prompt in prompts]

    @pytest.mark.parametrize(
        "error", [torch.AcceleratorError("CUDA error: illegal access"), RuntimeError("CUDA error: unknown")]
    )
    def test_cuda_error_ends_the_backend(self, backend: DeepSpeedBackend, error: Exception) -> None:
        break_block(backend, error)
        with pytest.raises(BackendDead, match="CUDA error"):
            backend.prefill([[1, 2, 3]])
        backend.reset()

    def test_out_of_memory_frees_the_cache_and_costs_the_batch(
        self, backend: DeepSpeedBackend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emptied: list[bool] = []
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
        break_block(backend, torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(BatchLost, match="memory"):
            backend.prefill([[1, 2, 3]])
        assert emptied == [True]


def break_block(backend: DeepSpeedBackend, error: Exception) -> None:
    def run(*_: object) -> None:
        raise error

    backend._run_blocks = (backend._run_blocks[0], run, *backend._run_blocks[2:])


@needs_deepspeed
class TestMasks:
    def test_no_padding_means_no_mask(self, backend: DeepSpeedBackend) -> None:
        masks = record_masks(backend)
        greedy(backend, [[1, 2], [3, 4]], 3)
        assert masks == [None] * 3

    def test_padding_means_a_contiguous_mask_as_wide_as_the_columns(self, backend: DeepSpeedBackend) -> None:
        masks = record_masks(backend)
        greedy(backend, [[1, 2, 3], [4]], 3)
        assert [mask.shape for mask in masks] == [(2, 1, 1, 3), (2, 1, 1, 4), (2, 1, 1, 5)]
        lowest = torch.finfo(torch.float32).min
        for mask in masks:
            assert mask.is_contiguous()
            assert mask.dtype == torch.float32
            assert mask[1, 0, 0].tolist() == [lowest, lowest] + [0.0] * (mask.shape[-1] - 2)
            assert not mask[0].any()

    @pytest.mark.parametrize(
        ("mask", "message"),
        [
            (torch.ones(2, 1, 1, 4, dtype=torch.bool), "mask is torch.bool"),
            (torch.zeros(2, 1, 1, 4, dtype=torch.float64), "mask is torch.float64"),
            (torch.zeros(1, 1, 1, 4).expand(2, 1, 1, 4), "not contiguous"),
            (torch.zeros(2, 1, 1, 9)[..., :4], "not contiguous"),
            (torch.zeros(2, 1, 1, 1), "the mask is"),
            (torch.zeros(2, 4), "the mask is"),
            (torch.zeros(4), "no mask"),
            (torch.zeros(2, 1, 1, 4, device="meta"), "mask is on meta"),
        ],
    )
    def test_stand_in_catches_a_mask_that_the_kernel_would_misread(
        self, backend: DeepSpeedBackend, mask: torch.Tensor, message: str
    ) -> None:
        with torch.inference_mode(), pytest.raises(standin.CorruptionError, match=message):
            backend._run_blocks[0](torch.zeros(2, 4, 64), mask)


def record_masks(backend: DeepSpeedBackend) -> list[Any]:
    masks: list[Any] = []
    first = backend._run_blocks[0]

    def run(x_BTD: torch.Tensor, mask: torch.Tensor | None) -> None:
        assert x_BTD.is_contiguous()
        masks.append(mask)
        first(x_BTD, mask)

    backend._run_blocks = (run, *backend._run_blocks[1:])
    return masks


@needs_deepspeed
class TestStandIn:
    @pytest.mark.parametrize(
        ("x_BTD", "message"),
        [
            (torch.zeros(4, 2, 64), "4 rows in a workspace for 3"),
            (torch.zeros(1, CONTEXT + 1, 64), f"{CONTEXT + 1} columns in a workspace for {CONTEXT}"),
            (torch.zeros(2, 64, 4).mT, "not contiguous"),
            (torch.zeros(1, 2, 64, dtype=torch.float16), "input is torch.float16, read as torch.float32"),
        ],
    )
    def test_catches_hidden_states_that_do_not_fit(
        self, backend: DeepSpeedBackend, x_BTD: torch.Tensor, message: str
    ) -> None:
        with torch.inference_mode(), pytest.raises(standin.CorruptionError, match=message):
            backend._run_blocks[0](x_BTD, None)

    def test_catches_more_tokens_than_the_workspace_holds(self, backend: DeepSpeedBackend) -> None:
        backend.prefill([[1] * CONTEXT])
        message = f"{CONTEXT + 1} tokens in a workspace"
        with torch.inference_mode(), pytest.raises(standin.CorruptionError, match=message):
            backend._run_blocks[0](torch.zeros(1, 1, 64), None)

    @torch.inference_mode()
    def test_direct_calls_equal_the_blocks_own_forward(self, context: standin.Context) -> None:
        model = make_model()
        backend = load_deepspeed(model, 1, None)
        for num_columns in (5, 1):  # a prompt, then the token after it
            x_BTD = torch.randn(1, num_columns, 64)
            expected = x_BTD.clone()
            tokens_before = context.num_tokens
            for block in model.transformer.h:
                expected = block.forward(expected)
            context.num_tokens = tokens_before
            for run_block in backend._run_blocks:
                run_block(x_BTD, None)
            assert torch.equal(x_BTD, expected)


@needs_deepspeed
class TestLoading:
    def test_second_model_in_one_process_is_refused(self, backend: DeepSpeedBackend) -> None:
        with pytest.raises(StartupError, match="one model a process"):
            load_deepspeed(make_model(), 1, None)
        assert len(greedy(backend, [[5]], 3)[0]) == 3

    def test_model_on_another_device_than_the_accelerator_is_refused(self, context: standin.Context) -> None:
        assert context.num_allocations == 0
        with torch.device("meta"):
            model = GPTJForCausalLM(make_config())
        with pytest.raises(StartupError, match="the model is on meta, DeepSpeed works on cpu"):
            deepspeed_inject.check_first(model)

    @pytest.mark.parametrize(
        "op",
        [f"{name}_fp32" for name in deepspeed_kernels.TEMPLATED_OPS] + list(deepspeed_kernels.PLAIN_OPS),
    )
    def test_extension_that_lacks_an_op_is_refused_before_the_model_is_touched(
        self, op: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        model = make_model()
        poor = standin.build(standin.Context(), without=(op,))
        with standin.installed(poor), pytest.raises(StartupError, match=f"built without {op}"):
            load_deepspeed(model, 1, None)
        assert type(model.transformer.h[0]).__name__ == "GPTJBlock"

    def test_silent_fallback_to_python_is_refused(self, context: standin.Context) -> None:
        """DeepSpeed itself falls back without an error; what it falls back to is found."""
        assert context.num_allocations == 0
        whole = standin.build(standin.Context())
        poor = standin.build(standin.Context(), without=("qkv_gemm_fp32", "reset_cache"))
        with (
            standin.installed(poor),
            pytest.raises(StartupError, match=r"fell back to Python for .*qkv_gemm.*reset_cache"),
        ):
            deepspeed_inject.inject(make_model(), whole, CONTEXT)

    def test_source_blocks_give_their_weights_back_one_by_one(
        self, context: standin.Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from deepspeed.model_implementations.transformers.ds_gpt import DeepSpeedGPTInference

        assert context.num_allocations == 0
        model = make_model()
        sources = list(model.transformer.h)
        full_at_creation = []
        create = DeepSpeedGPTInference.__init__

        def spy(self: Any, *args: Any, **kwargs: Any) -> None:
            full_at_creation.append(sum(any(p.numel() for p in block.parameters()) for block in sources))
            create(self, *args, **kwargs)

        monkeypatch.setattr(DeepSpeedGPTInference, "__init__", spy)
        load_deepspeed(model, 1, None)
        assert full_at_creation == [3, 2, 1]
        assert not any(
            tensor.numel() for block in sources for tensor in (*block.parameters(), *block.buffers())
        )

    def test_nothing_is_kept_that_no_block_reads(self, backend: DeepSpeedBackend) -> None:
        from deepspeed.module_inject import replace_module
        from deepspeed.ops.transformer.inference.ds_attention import DeepSpeedSelfAttention
        from deepspeed.ops.transformer.inference.ds_mlp import DeepSpeedMLP

        assert replace_module.container_g is None
        assert DeepSpeedSelfAttention._qkv_buffers == DeepSpeedMLP._inter_w_buffers == []
        assert len(greedy(backend, [[5]], 2)[0]) == 2

    def test_init_inference_is_asked_for_no_more_and_no_less(
        self, context: standin.Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import deepspeed

        asked = {}
        init_inference = deepspeed.init_inference

        def spy(model: Any, **kwargs: Any) -> Any:
            asked.update(kwargs)
            return init_inference(model, **kwargs)

        monkeypatch.setattr(deepspeed, "init_inference", spy)
        load_deepspeed(make_model(), 2, 16)
        assert asked == {
            "dtype": torch.float32,
            "tensor_parallel": {"tp_size": 1},
            "replace_with_kernel_inject": True,
            "return_tuple": False,
            "max_out_tokens": 16,
            "min_out_tokens": 16,
        }
        assert (context.batch_size, context.max_tokens) == (2, 16)
        assert not torch.distributed.is_initialized()

    def test_stdout_stays_free_for_the_log(
        self, context: standin.Context, capfd: pytest.CaptureFixture[str]
    ) -> None:
        load_deepspeed(make_model(), 1, None)
        out, err = capfd.readouterr()
        assert out == ""
        assert "Setting maximum total tokens" in err
        assert context.num_allocations == 1

    def test_context_is_never_more_than_the_models(self, context: standin.Context) -> None:
        assert load_deepspeed(make_model(), 1, CONTEXT + 100).limits.max_context == CONTEXT
        assert context.max_tokens == CONTEXT

    @pytest.mark.parametrize("max_context", [2, 3])
    def test_smallest_contexts_work(
        self, context: standin.Context, plain: GPTJForCausalLM, max_context: int
    ) -> None:
        backend = load_deepspeed(make_model(), 2, max_context)
        assert greedy(backend, [[5]], max_context) == [greedy_plain(plain, [5], max_context)]
        assert context.max_tokens == max_context

    def test_workspace_that_cannot_be_had_stops_the_start(self, context: standin.Context) -> None:
        context.free_bytes = 1 << 20
        with pytest.raises(StartupError, match=r"Workspace can't be allocated.*GPTJ_MAX_BATCH_SIZE"):
            load_deepspeed(make_model(), 1, None)

    def test_kernels_of_another_gpu_are_named_as_such(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def softmax_context(*_: object) -> None:
            raise RuntimeError("CUDA error: no kernel image is available\nCompile with ...")

        with (
            replaced_op(monkeypatch, softmax_context),
            pytest.raises(StartupError, match=r"no kernel image is available\); .*TORCH_CUDA_ARCH_LIST"),
        ):
            load_deepspeed(make_model(), 1, None)

    def test_kernels_that_compute_something_else_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No rotary embedding: what DeepSpeed's Python code in place of the op does."""
        state = standin.Context()
        right = standin.build(state).softmax_context_fp32

        def without_rotary(qkv: torch.Tensor, mask: torch.Tensor, rotary_dim: int, *rest: Any) -> Any:
            return right(qkv, mask, 0 * rotary_dim, *rest)

        with (
            replaced_op(monkeypatch, without_rotary, state),
            pytest.raises(StartupError, match="disagree with the plain model"),
        ):
            load_deepspeed(make_model(), 1, None)

    def test_blocks_that_work_in_another_way_are_refused(
        self, context: standin.Context, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from deepspeed.model_implementations.transformers.ds_gpt import DeepSpeedGPTInference

        assert context.num_allocations == 0
        forward = DeepSpeedGPTInference.forward
        monkeypatch.setattr(DeepSpeedGPTInference, "forward", lambda self, x_BTD: forward(self, x_BTD) * 2)
        with pytest.raises(StartupError, match="in another way than we do"):
            load_deepspeed(make_model(), 1, None)


def replaced_op(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any], state: standin.Context | None = None
) -> Any:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    extension = standin.build(state or standin.Context())
    extension.softmax_context_fp32 = function  # type: ignore[attr-defined]
    return standin.installed(extension)


class TestRules:
    GPTJ_6B = deepspeed_rules.ModelShape(28, 4096, 16, 2048, 50400, 2)

    @pytest.mark.parametrize(("max_context", "gib"), [(1024, 0.55), (2048, 1.16)])
    def test_workspace_of_gpt_j_6b(self, max_context: int, gib: float) -> None:
        assert deepspeed_rules.workspace_bytes(self.GPTJ_6B, 1, max_context) / GIB == pytest.approx(
            gib, abs=0.005
        )
        assert deepspeed_rules.workspace_bytes(self.GPTJ_6B, 8, max_context) == (
            8 * deepspeed_rules.workspace_bytes(self.GPTJ_6B, 1, max_context)
        )

    @pytest.mark.parametrize("head_size", [16, 48, 128, 256])
    @pytest.mark.parametrize("rows", [1, 5])
    def test_needed_memory_is_what_the_extension_takes(self, head_size: int, rows: int) -> None:
        """With just so much free, the extension allocates all the tokens asked for."""
        shape = deepspeed_rules.ModelShape(2, 4 * head_size, 4, 64, 100, 2)
        state = standin.Context(deepspeed_rules.needed_bytes(shape, rows, 64))
        state.allocate(4 * head_size, 4, rows, 2, 64, 64, torch.float16)
        assert state.max_tokens == 64
        assert state._memory is not None
        assert state._memory.nbytes == deepspeed_rules.workspace_bytes(shape, rows, 64)

    @pytest.mark.parametrize(
        ("free_gib", "asked", "max_context", "rows"),
        [
            (80, None, 2048, 8),
            (3.0, None, 2048, 2),
            (3.0, None, 1024, 4),
            (80, 16, 2048, 16),
            (80, 2, 1024, 2),
        ],
    )
    def test_batch_size(self, free_gib: float, asked: int | None, max_context: int, rows: int) -> None:
        free_bytes = int(free_gib * GIB)
        assert deepspeed_rules.choose_batch_size(self.GPTJ_6B, free_bytes, asked, max_context) == rows

    def test_largest_default_that_fits_is_taken(self) -> None:
        for rows in range(1, 9):
            needed = deepspeed_rules.needed_bytes(self.GPTJ_6B, rows, 2048)
            assert deepspeed_rules.choose_batch_size(self.GPTJ_6B, needed, None, 2048) == rows

    def test_batch_that_does_not_fit_says_what_would(self) -> None:
        with pytest.raises(StartupError, match=r"8 x 2048.*needs 10.\d\d GiB.*4.00 GiB are free.*") as error:
            deepspeed_rules.choose_batch_size(self.GPTJ_6B, 4 * GIB, 8, 2048)
        advised = int(re.findall(r"GPTJ_MAX_BATCH_SIZE to (\d+) or less", str(error.value))[0])
        assert deepspeed_rules.choose_batch_size(self.GPTJ_6B, 4 * GIB, advised, 2048) == advised

    def test_context_that_does_not_fit_says_which_would(self) -> None:
        with pytest.raises(StartupError, match=r"1 x 2048.*1.20 GiB are free") as error:
            deepspeed_rules.choose_batch_size(self.GPTJ_6B, int(1.2 * GIB), None, 2048)
        advised = int(re.findall(r"GPTJ_MAX_CONTEXT to (\d+) or less", str(error.value))[0])
        assert 256 < advised < 2048
        assert deepspeed_rules.choose_batch_size(self.GPTJ_6B, int(1.2 * GIB), None, advised) == 1
        with pytest.raises(StartupError):
            deepspeed_rules.choose_batch_size(self.GPTJ_6B, int(1.2 * GIB), None, advised + 1)

    def test_gpu_without_any_room_names_the_other_engine(self) -> None:
        with pytest.raises(StartupError, match=r"too small.*GPTJ_ENGINE=hf"):
            deepspeed_rules.choose_batch_size(self.GPTJ_6B, 100 << 20, None, 2048)

    def test_rows_beyond_the_kernels_index_are_refused(self) -> None:
        assert deepspeed_rules.indexable_batch_size(self.GPTJ_6B, 2048) == 31  # 32 * 16 * 2048**2 is 2**31
        with pytest.raises(StartupError, match=r"GPTJ_MAX_BATCH_SIZE=32.*at most 31 rows of 2048"):
            deepspeed_rules.choose_batch_size(self.GPTJ_6B, 1000 * GIB, 32, 2048)

    def test_gpt_j_6b_is_accepted(self) -> None:
        deepspeed_rules.check_config(GPTJConfig())
        deepspeed_rules.check_dtype({torch.float16}, "cuda")

    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"n_inner": 100}, "n_inner=100"),
            ({"activation_function": "gelu"}, "activation_function=gelu"),
            ({"rotary_dim": 0}, "rotary_dim=0"),
            ({"rotary_dim": 4}, "rotary_dim=4"),
            ({"rotary_dim": 24}, "rotary_dim=24"),
            ({"n_head": 16}, "n_embd / n_head=4"),
            ({"n_embd": 16384, "n_head": 64}, "n_embd=16384"),
        ],
    )
    def test_model_that_the_kernels_get_wrong_is_refused(self, changes: dict[str, Any], name: str) -> None:
        with pytest.raises(StartupError, match=re.escape(name)):
            deepspeed_rules.check_config(make_config(**changes))

    @pytest.mark.parametrize(
        ("dtypes", "reason"),
        [
            ({torch.float32}, "float32: their rotary"),
            ({torch.bfloat16}, "bfloat16: they are built without"),
            ({torch.float16, torch.int8}, "float16, int8: their int8"),
            ({torch.float64}, "float64"),
        ],
    )
    def test_anything_but_fp16_is_refused_on_a_gpu(self, dtypes: set[torch.dtype], reason: str) -> None:
        with pytest.raises(StartupError, match=reason):
            deepspeed_rules.check_dtype(dtypes, "cuda")


class TestKernels:
    @pytest.mark.parametrize(
        ("asked", "built"),
        [
            (None, "9.0"),
            ("", "9.0"),
            ("9.0a", "9.0"),
            ("8.0;9.0a+PTX", "9.0"),
            ("Hopper", "9.0"),
            ("8.0 9.0+PTX", "8.0;9.0+PTX"),
            ("7.5;12.0", "7.5;12.0"),
        ],
    )
    def test_architectures_that_crash_the_builder_are_replaced(self, asked: str | None, built: str) -> None:
        assert deepspeed_kernels.arch_list(asked, (9, 0)) == built

    def test_build_environment_is_put_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
        monkeypatch.setenv("PATH", "/somewhere")
        with deepspeed_kernels._build_environment():
            assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0"
            assert os.environ["PATH"].split(os.pathsep) == [sysconfig.get_path("scripts"), "/somewhere"]
        assert "TORCH_CUDA_ARCH_LIST" not in os.environ
        assert os.environ["PATH"] == "/somewhere"

    def test_without_a_gpu_there_are_no_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert deepspeed_kernels.kernels_missing() == "no CUDA GPU is visible"

    def test_without_the_package_there_are_no_kernels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        assert deepspeed_kernels.kernels_missing() == "the package deepspeed is not installed"

    def test_prebuilt_or_the_means_to_build_are_enough(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        init = tmp_path / "deepspeed" / "__init__.py"
        folder = init.parent / "ops" / "transformer" / "inference"
        folder.mkdir(parents=True)
        spec = importlib.util.spec_from_file_location("deepspeed", init)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
        monkeypatch.setattr(deepspeed_kernels, "_missing_build_tools", lambda _: ["nvcc", "ninja"])
        assert "nvcc, ninja" in str(deepspeed_kernels.kernels_missing())
        (folder / "transformer_inference_op.cpython-312-x86_64-linux-gnu.so").touch()
        assert deepspeed_kernels.kernels_missing() is None
        (folder / "transformer_inference_op.cpython-312-x86_64-linux-gnu.so").unlink()
        monkeypatch.setattr(deepspeed_kernels, "_missing_build_tools", lambda _: [])
        assert deepspeed_kernels.kernels_missing() is None

    def test_build_tools_are_looked_for_where_the_build_finds_them(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(deepspeed_kernels, "_nvcc", lambda: str(tmp_path / "nvcc"))
        monkeypatch.delenv("CXX", raising=False)
        for name in ("ninja", "c++"):
            (tmp_path / name).touch(0o755)
        assert deepspeed_kernels._missing_build_tools(str(tmp_path)) == ["nvcc"]
        (tmp_path / "nvcc").touch(0o755)
        assert deepspeed_kernels._missing_build_tools(str(tmp_path)) == []
        assert deepspeed_kernels._missing_build_tools("/nowhere") == ["ninja", "a C++ compiler"]

    @needs_deepspeed
    def test_kernels_that_cannot_be_had_stop_the_start_with_one_line(self) -> None:
        code = """
from gptj_serve.engine.static.deepspeed.kernels import ensure_kernels
from gptj_serve.errors import StartupError
try:
    ensure_kernels()
except StartupError as error:
    print(error)
"""
        environment = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": "",
        }
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        assert line == (
            "DeepSpeed's kernels cannot be used here (This op had not been implemented on CPU backend.); "
            "set GPTJ_ENGINE=hf"
        )

    def test_origin_tells_a_build_from_a_cache(self, tmp_path: Path) -> None:
        extension = ModuleType("transformer_inference")
        assert deepspeed_kernels._origin(extension, 0.0) == "unknown"
        path = tmp_path / "transformer_inference.so"
        path.touch()
        extension.__file__ = str(path)
        assert deepspeed_kernels._origin(extension, path.stat().st_mtime - 1) == "compiled"
        assert deepspeed_kernels._origin(extension, path.stat().st_mtime + 1) == "cached"
        inside = tmp_path / "deepspeed" / "op.so"
        inside.parent.mkdir()
        inside.touch()
        extension.__file__ = str(inside)
        assert deepspeed_kernels._origin(extension, 0.0) == "prebuilt"
