"""Stands in for DeepSpeed's compiled op `transformer_inference` on a CPU.

The ops that GPT-J's injected blocks call, in plain torch and with the signatures of the extension's
``pt_binding.cpp``. One flat workspace and one token counter, as in its ``inference_context.h``: results
are views at the same places, so what overwrites what is as on a GPU. Where CUDA would read or write
memory that it does not own, it raises `CorruptionError`. It cannot find errors of the kernels themselves.

Shape suffixes: B rows, T columns of this call, K columns so far, M columns at most, D width, H heads,
S head size, W MLP width.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from types import ModuleType

import torch
from torch.nn import functional as F

MINUS_INFINITY = -10000.0
"""What the softmax kernel puts in place of a column that it must not see."""

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}

MIB = 1 << 20


class CorruptionError(Exception):
    """CUDA would have read or written foreign memory here, without an error."""


def _demand(is_right: bool, message: str) -> None:
    if not is_right:
        raise CorruptionError(message)


class Context:
    """The extension's process-wide state: workspace, its sizes, and the number of columns so far.

    Attributes:
        free_bytes: Memory that an allocation sees as free.
        num_allocations: How often a workspace was taken.
    """

    def __init__(self, free_bytes: int = 4096 * MIB) -> None:
        self.free_bytes = free_bytes
        self.num_allocations = 0
        self.num_tokens = 1
        self.batch_size = 0
        self.max_tokens = 0
        self._memory: torch.Tensor | None = None

    def allocate(
        self, width: int, heads: int, batch: int, layers: int, max_out: int, min_out: int, dtype: torch.dtype
    ) -> None:
        head_size = width // heads
        padded = 32 if head_size <= 32 else 64 if head_size <= 64 else 128
        stored = heads * (head_size if head_size > 128 else padded)
        scores = batch * heads * max_out
        per_token = 10 * stored * batch + scores + layers * batch * stored * 2
        minimal = scores + (500 if self.free_bytes > 1024 * MIB else 100) * MIB
        if self.free_bytes < minimal:
            raise RuntimeError("Workspace can't be allocated, no enough memory.")
        self.max_tokens = min(max_out, (self.free_bytes - minimal) // dtype.itemsize // per_token)
        if self.max_tokens < min_out:
            raise RuntimeError("Workspace can't be allocated, not enough memory")
        self.batch_size = batch
        self.num_allocations += 1
        self.scores_at = (per_token - scores) * self.max_tokens
        # past Python's own stdout, as C does
        os.write(1, b"Setting maximum total tokens (input + output) to %d\n" % self.max_tokens)
        # NaN, so that whatever reads what nobody wrote shows
        self._memory = torch.full((per_token * self.max_tokens,), math.nan, dtype=dtype)

    def view(self, start: int, *shape: int) -> torch.Tensor:
        _demand(self._memory is not None, "no workspace was allocated")
        assert self._memory is not None
        end = start + math.prod(shape)
        _demand(end <= self._memory.numel(), f"the workspace ends at {self._memory.numel()}, not {end}")
        return self._memory[start:end].view(shape)

    def check_batch(self, x_BTD: torch.Tensor) -> None:
        rows, columns = x_BTD.shape[:2]
        _demand(rows <= self.batch_size, f"{rows} rows in a workspace for {self.batch_size}")
        _demand(columns <= self.max_tokens, f"{columns} columns in a workspace for {self.max_tokens}")


class Ops:
    """The ops for one data type."""

    def __init__(self, context: Context, dtype: torch.dtype) -> None:
        self._context = context
        self._dtype = dtype

    def _check(self, **tensors: torch.Tensor) -> None:
        for name, tensor in tensors.items():
            _demand(tensor.dtype == self._dtype, f"{name} is {tensor.dtype}, read as {self._dtype}")
            _demand(tensor.is_contiguous(), f"{name} is not contiguous")
            _demand(tensor.device.type == "cpu", f"{name} is on {tensor.device}")

    def allocate_workspace(
        self, hidden_dim, num_heads, prompt_length, batch_size, num_layers, mp_size=1, external_cache=False,
        rank=0, max_out_tokens=1024, min_out_tokens=1,
    ):  # fmt: skip
        assert prompt_length > 0
        assert (mp_size, external_cache, rank) == (1, False, 0)
        self._context.allocate(
            hidden_dim, num_heads, batch_size, num_layers, max_out_tokens, min_out_tokens, self._dtype
        )

    def qkv_gemm(
        self, input, weight, q_scale, bias, gamma, beta, epsilon, add_bias, q_int8, transposed_mode
    ):  # fmt: skip
        assert q_scale.dim() == bias.dim() == 1
        assert (add_bias, q_int8, transposed_mode) == (False, False, False)
        self._check(input=input, weight=weight, gamma=gamma, beta=beta)
        self._context.check_batch(input)
        B, T, D = input.shape
        qkv = self._context.view(0, B, T, 3 * D)
        normed = self._context.view(3 * B * T * D, B, T, D)
        normed.copy_(F.layer_norm(input, (D,), gamma, beta, epsilon))
        qkv.copy_(normed @ weight)
        return [qkv, normed]

    def softmax_context(
        self, query_key_value, attn_mask, rotary_dim, rotate_half, rotate_every_two, heads, num_kv,
        norm_factor, triangular, local_attention, window_size, no_masking, layer_id, num_layers, alibi,
        rope_theta, is_prompt, token_idx, position_ids,
    ):  # fmt: skip
        assert (rotate_half, rotate_every_two, triangular, local_attention) == (False, True, True, False)
        assert num_kv <= 0
        assert window_size > 0
        assert alibi.dim() == 1
        assert token_idx is None
        assert position_ids is None
        context = self._context
        self._check(query_key_value=query_key_value)
        context.check_batch(query_key_value)
        B, T, D = (*query_key_value.shape[:2], query_key_value.shape[2] // 3)
        is_prompt = T > 1  # whatever the caller says
        if is_prompt:
            context.num_tokens = T
        K, H, S = context.num_tokens, heads, D // heads
        _demand(context.max_tokens >= K, f"{K} tokens in a workspace for {context.max_tokens}")
        mask = self._mask(attn_mask, no_masking, B, T, K)
        start = 0 if is_prompt else K - 1
        query, key, value = query_key_value.clone().view(B, T, 3, H, S).permute(2, 0, 3, 1, 4)
        key_cache, value_cache = self._cache(layer_id, D, H)
        key_cache[:B, :, start : start + T] = _rotate(key, rotary_dim, rope_theta, start)
        value_cache[:B, :, start : start + T] = value
        query = _rotate(query, rotary_dim, rope_theta, start)
        scores = context.view(context.scores_at, B, H, T, K)
        scores.copy_(query @ key_cache[:B, :, :K].mT * norm_factor**2)
        scores.copy_(_softmax(scores, mask, is_prompt))
        output = context.view(4 * B * T * D, B, T, D)
        output.copy_((scores @ value_cache[:B, :, :K]).transpose(1, 2).reshape(B, T, D))
        if layer_id == num_layers - 1:
            context.num_tokens += 1
        return [output, key_cache[:B, :, :K], value_cache[:B, :, :K]]

    def _cache(self, layer_id: int, D: int, H: int) -> tuple[torch.Tensor, torch.Tensor]:
        B, M = self._context.batch_size, self._context.max_tokens
        start = 10 * D * B * M + layer_id * 2 * B * M * D
        cache = self._context.view(start, 2, B, H, M, D // H)
        return cache[0], cache[1]

    def _mask(self, mask: torch.Tensor, no_masking: bool, B: int, T: int, K: int) -> torch.Tensor | None:
        if mask.dim() <= 1:
            _demand(no_masking, "a mask of one dimension is no mask")
            return None
        _demand(not no_masking, "the mask is read whatever no_masking says")
        self._check(mask=mask)
        allowed = [(B, 1, 1, K), (B, 1, T, K)]
        _demand(tuple(mask.shape) in allowed, f"the mask is {tuple(mask.shape)}, read as {allowed[0]}")
        return mask

    def vector_matmul(self, input, weight, async_op, q_scale, q_int8, transposed_mode):
        assert q_scale.dim() == 1
        assert (async_op, q_int8, transposed_mode) == (False, False, False)
        self._check(input=input, weight=weight)
        self._context.check_batch(input)
        output = self._context.view(0, *input.shape[:2], weight.shape[1])
        return output.copy_(input @ weight)

    def fused_gemm_gelu(
        self, input, weight, weight_scale, bias, weight_out, weight_out_scale, q_int8, transposed_mode
    ):  # fmt: skip
        assert weight_scale.dim() == weight_out_scale.dim() == 1
        assert (q_int8, transposed_mode) == (False, False)
        self._check(input=input, weight=weight, bias=bias, weight_out=weight_out)
        return F.gelu(input @ weight + bias, approximate="tanh") @ weight_out

    def mlp_gemm(self, *args):
        raise NotImplementedError("GPT-J's blocks have one norm: their MLP is fused_gemm_gelu")

    def residual_add_bias(
        self, hidden_state, residual, attention_output, attention_bias, final_bias, mp_size, mlp_after_attn,
        add_bias, preln,
    ):  # fmt: skip
        assert (mp_size, mlp_after_attn, add_bias, preln) == (1, False, False, True)
        self._check(
            hidden_state=hidden_state, residual=residual, attention_output=attention_output,
            attention_bias=attention_bias, final_bias=final_bias,
        )  # fmt: skip
        _demand(
            hidden_state.shape == residual.shape == attention_output.shape, "sizes of the summands differ"
        )
        return residual.copy_(hidden_state + attention_output + residual + final_bias)


def _rotate(x_BHTS: torch.Tensor, rotary_dim: int, theta: float, start: int) -> torch.Tensor:
    """Turn pairs of neighbouring values by their column's angle; values past ``rotary_dim`` stay."""
    columns = torch.arange(start, start + x_BHTS.shape[2], dtype=torch.float32)
    frequencies = theta ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float32) / rotary_dim)
    angles = columns[:, None] * frequencies
    sin, cos = angles.sin(), angles.cos()
    even, odd = x_BHTS[..., :rotary_dim:2].float(), x_BHTS[..., 1:rotary_dim:2].float()
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return torch.cat([turned.to(x_BHTS.dtype), x_BHTS[..., rotary_dim:]], dim=-1)


def _softmax(scores_BHTK: torch.Tensor, mask: torch.Tensor | None, is_causal: bool) -> torch.Tensor:
    scores = scores_BHTK.float()
    if mask is not None:
        scores = scores + mask.float()
    if is_causal:
        T, K = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(T, K, dtype=torch.bool).triu(1), MINUS_INFINITY)
    highest = scores.amax(-1, keepdim=True).clamp(min=MINUS_INFINITY)
    powers = (scores - highest).exp()
    return powers / (powers.sum(-1, keepdim=True) + 1e-6)


def build(context: Context, without: tuple[str, ...] = ()) -> ModuleType:
    """Make the extension module, if asked without some of its ops (as an incomplete build is)."""
    extension = ModuleType("transformer_inference")
    functions = {
        "reset_cache": lambda: setattr(context, "num_tokens", 1),
        "release_workspace": lambda: None,
        "retake_workspace": lambda: True,
        "layer_norm": F.layer_norm,
    }
    for suffix, dtype in DTYPES.items():
        ops = Ops(context, dtype)
        for name in dir(Ops):
            if not name.startswith("_"):
                functions[f"{name}_{suffix}"] = getattr(ops, name)
    for name, function in functions.items():
        if name not in without:
            setattr(extension, name, function)
    return extension


@contextlib.contextmanager
def installed(extension: ModuleType) -> Iterator[None]:
    """Have DeepSpeed load this extension, with all of its process-wide state as in a fresh process."""
    from deepspeed.ops import op_builder
    from deepspeed.ops.transformer.inference.op_binding import base

    class Builder:
        def load(self, verbose: bool = True) -> ModuleType:
            del verbose
            return extension

    before = op_builder.InferenceBuilder
    op_builder.InferenceBuilder = base.InferenceBuilder = Builder
    forget_model()
    try:
        yield
    finally:
        op_builder.InferenceBuilder = base.InferenceBuilder = before
        forget_model()


def forget_model() -> None:
    """Set DeepSpeed's process-wide state back: nothing injected, no extension loaded."""
    from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference
    from deepspeed.ops.transformer.inference.ds_attention import DeepSpeedSelfAttention
    from deepspeed.ops.transformer.inference.ds_mlp import DeepSpeedMLP
    from deepspeed.ops.transformer.inference.op_binding.base import BaseOp

    DeepSpeedTransformerInference.layer_id = DeepSpeedSelfAttention.num_layers = 0
    DeepSpeedTransformerInference.workspace = BaseOp.inference_module = None
    DeepSpeedSelfAttention._qkv_buffers, DeepSpeedMLP._inter_w_buffers = [], []
