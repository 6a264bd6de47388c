"""Puts DeepSpeed's kernels into a Transformers GPT-J and runs the injected blocks.

Shape suffixes: B rows, T columns of this call, K columns so far, D width, 1 one.
"""

import logging
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import GPTJForCausalLM

from gptj_serve.engine.static.deepspeed.kernels import check_bound, stdout_to_stderr
from gptj_serve.errors import StartupError

logger = logging.getLogger(__name__)

RunBlock = Callable[[torch.Tensor, torch.Tensor | None], None]
"""Runs a block in place on x_BTD with mask_B11K, which is None if no row is padded."""


class _ConsumedBlocks(nn.ModuleList):
    """Blocks that release their weights the moment they are replaced.

    DeepSpeed walks over `named_children`, which keeps every replaced block alive until the walk is over, so
    that all weights would be on the GPU twice.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        replaced = self.__dict__.get("_modules", {}).get(name)
        super().__setattr__(name, value)
        if replaced is not None:
            for tensor in (*replaced.parameters(), *replaced.buffers()):
                tensor.data = tensor.data.new_empty(0)


def check_first(model: GPTJForCausalLM) -> None:
    """Refuse a second injected model in this process, or an accelerator that is not the model's.

    Raises:
        StartupError: Workspace and token counter belong to the process, so two models would share them.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference

    if DeepSpeedTransformerInference.layer_id:
        raise StartupError("DeepSpeed's kernels hold one model a process, and this process has one already")
    accelerator = get_accelerator().device_name()
    if accelerator != model.device.type:
        raise StartupError(
            f"the model is on {model.device.type}, DeepSpeed works on {accelerator} "
            f"(DS_ACCELERATOR={os.environ.get('DS_ACCELERATOR', '')})"
        )


def inject(model: GPTJForCausalLM, extension: ModuleType, max_context: int) -> list[Any]:
    """Replace the model's blocks by DeepSpeed's. The plain blocks lose their weights.

    At the worst moment, this takes one block's weights more than the model itself.

    Args:
        model: In evaluation mode, on the accelerator.
        extension: What `ensure_kernels` returned.
        max_context: How many columns the workspace will hold; a smaller workspace is an error.

    Returns:
        The injected blocks, in order.

    Raises:
        StartupError: A block was not replaced, or is not bound to the compiled ops.
    """
    import deepspeed

    model.transformer.h = _ConsumedBlocks(model.transformer.h)
    with stdout_to_stderr():
        deepspeed.init_inference(
            model,
            dtype=model.dtype,
            tensor_parallel={"tp_size": 1},
            replace_with_kernel_inject=True,
            return_tuple=False,
            max_out_tokens=max_context,
            min_out_tokens=max_context,
        )
    blocks: list[Any] = list(model.transformer.h)
    _check_injected(blocks)
    check_bound(blocks, extension, model.dtype)
    _free_leftovers()
    return blocks


def _check_injected(blocks: list[Any]) -> None:
    from deepspeed.model_implementations.transformers.ds_gpt import DeepSpeedGPTInference

    plain = sum(not isinstance(block, DeepSpeedGPTInference) for block in blocks)
    if plain:
        raise StartupError(f"DeepSpeed left {plain} of {len(blocks)} blocks as they were")


def _free_leftovers() -> None:
    """Drop what the injection keeps and GPT-J never reads, nearly a block's worth of GPU memory."""
    from deepspeed.module_inject import replace_module
    from deepspeed.ops.transformer.inference.ds_attention import DeepSpeedSelfAttention
    from deepspeed.ops.transformer.inference.ds_mlp import DeepSpeedMLP

    replace_module.container_g = None
    DeepSpeedSelfAttention._qkv_buffers = []
    DeepSpeedMLP._inter_w_buffers = []
    torch.cuda.empty_cache()


def bind_block(block: Any) -> RunBlock:
    """The compiled calls of one injected block, with everything that never changes looked up once.

    It does what the block's own `forward` does for GPT-J, op by op, since `forward` spends more time in
    Python than the kernels take on a fast GPU. Loading compares the two.
    """
    attention, mlp, config = block.attention, block.mlp, block.config
    nothing = torch.empty(1)  # with one dimension, the extension takes it as "not given"
    qkv_gemm = attention.qkv_func.qkv_gemm_func
    softmax_context = attention.score_context_func.softmax_context_func
    vector_matmul = attention.vector_matmul_func.vector_matmul_func
    fused_gemm_gelu = mlp.fused_gemm_gelu.fused_gemm_gelu
    residual_add = mlp.residual_add_func.residual_add_func
    qkv_weight, out_weight = attention.attn_qkvw, attention.attn_ow
    norm_weight, norm_bias, epsilon = block.norm_w, block.norm_b, config.epsilon
    in_weight, in_bias = mlp.inter_w, mlp.inter_b
    out_mlp_weight, out_mlp_bias = mlp.output_w, mlp.output_b
    rotary = (config.rotary_dim, config.rotate_half, config.rotate_every_two)
    heads = (attention.num_attention_heads_per_partition, attention.num_kv_partition)
    scaling = (1 / attention.norm_factor, config.triangular_masking)
    window = (config.local_attention, config.window_size)
    layer = (config.layer_id, attention.num_layers, nothing, config.rope_theta)

    def run(x_BTD: torch.Tensor, mask_B11K: torch.Tensor | None) -> None:
        mask = (nothing, True) if mask_B11K is None else (mask_B11K, False)
        qkv, normed = qkv_gemm(
            x_BTD, qkv_weight, nothing, nothing, norm_weight, norm_bias, epsilon, False, False, False
        )
        context = softmax_context(
            qkv, mask[0], *rotary, *heads, *scaling, *window, mask[1], *layer, x_BTD.shape[1] > 1, None, None
        )[0]
        attended = vector_matmul(context, out_weight, False, nothing, False, False)
        fed = fused_gemm_gelu(normed, in_weight, nothing, in_bias, out_mlp_weight, nothing, False, False)
        residual_add(fed, x_BTD, attended, out_mlp_bias, out_mlp_bias, 1, False, False, True)

    return run


def reset_cache() -> None:
    """Set the process's token counter back to the first column; this touches no GPU."""
    from deepspeed.model_implementations.transformers.ds_transformer import DeepSpeedTransformerInference

    DeepSpeedTransformerInference.reset_cache()
