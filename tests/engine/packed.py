"""What the packed weights must hold, put together from a plain state dictionary by other means."""

import torch

from gptj_serve.engine.fused.weights.pack import PackedWeights


def expected_weights(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of `PackedWeights` by its name.

    Args:
        state: Of Transformers' ``GPTJForCausalLM``; the head must be in it, tied or not.
        dtype: Type to convert to.
    """
    num_layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.h."))

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([state[f"transformer.h.{layer}.{name}"] for layer in range(num_layers)])

    packed = {
        "embedding_VD": state["transformer.wte.weight"],
        "in_weight_LND": torch.cat(
            [
                stacked("attn.q_proj.weight"),
                stacked("attn.k_proj.weight"),
                stacked("attn.v_proj.weight"),
                stacked("mlp.fc_in.weight"),
            ],
            dim=1,
        ),
        "in_bias_LF": stacked("mlp.fc_in.bias"),
        "out_weight_LDK": torch.cat([stacked("mlp.fc_out.weight"), stacked("attn.out_proj.weight")], dim=2),
        "out_bias_LD": stacked("mlp.fc_out.bias"),
        "norm_weight_LD": torch.cat([stacked("ln_1.weight"), state["transformer.ln_f.weight"][None]]),
        "norm_bias_LD": torch.cat([stacked("ln_1.bias"), state["transformer.ln_f.bias"][None]]),
        "head_weight_VD": state["lm_head.weight"],
        "head_bias_V": state["lm_head.bias"],
    }
    return {name: tensor.to(dtype) for name, tensor in packed.items()}


def assert_packed(weights: PackedWeights, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Every weight is where the layout says, bit by bit; ``state`` may be on another device."""
    for name, expected in expected_weights(state, dtype).items():
        tensor = getattr(weights, name)
        assert (tensor.dtype, tensor.is_contiguous()) == (dtype, True), name
        assert torch.equal(tensor, expected.to(tensor.device)), name
