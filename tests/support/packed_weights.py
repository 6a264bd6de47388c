"""What the packed weights must hold, put together from a plain state dictionary by other means."""

import torch

from gptj_serve.engine.fused.weights.pack import PackedWeights


def expected_weights(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every tensor of `PackedWeights` under the names of `named_tensors`.

    Args:
        state: Of Transformers' ``GPTJForCausalLM``; the head must be in it, tied or not.
        dtype: Type to convert to.
    """
    num_layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("transformer.h."))
    packed = {
        "embedding": state["transformer.wte.weight"],
        "head": state["lm_head.weight"],
        "head_bias": state["lm_head.bias"],
    }
    for layer in range(num_layers):
        of = {name.removeprefix(f"transformer.h.{layer}."): tensor for name, tensor in state.items()}
        projections = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in")
        packed[f"{layer}.project"] = torch.cat([of[f"{name}.weight"] for name in projections])
        packed[f"{layer}.project_bias"] = of["mlp.fc_in.bias"]
        packed[f"{layer}.add"] = torch.cat([of["mlp.fc_out.weight"], of["attn.out_proj.weight"]], dim=1)
        packed[f"{layer}.add_bias"] = of["mlp.fc_out.bias"]
    norms = [*(f"transformer.h.{layer}.ln_1" for layer in range(num_layers)), "transformer.ln_f"]
    for index, name in enumerate(norms):
        packed[f"{index}.norm_weight"] = state[f"{name}.weight"]
        packed[f"{index}.norm_bias"] = state[f"{name}.bias"]
    return {name: tensor.to(dtype) for name, tensor in packed.items()}


def named_tensors(weights: PackedWeights) -> dict[str, torch.Tensor]:
    """Every tensor by a name that says what it is."""
    (head,) = weights.head.tensors
    named = {"embedding": weights.embedding_VD, "head": head, "head_bias": weights.head_bias_V}
    for index, layer in enumerate(weights.layers):
        for name, product in zip(("project", "add"), layer.products, strict=True):
            (named[f"{index}.{name}"],) = product.matrix.tensors
            named[f"{index}.{name}_bias"] = product.bias_N
    for index, norm in enumerate(weights.norms()):
        named[f"{index}.norm_weight"], named[f"{index}.norm_bias"] = norm.weight_D, norm.bias_D
    return named


def assert_packed(weights: PackedWeights, state: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Every weight is where the layout says, bit by bit; ``state`` may be on another device."""
    found, expected = named_tensors(weights), expected_weights(state, dtype)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert (tensor.dtype, tensor.is_contiguous()) == (dtype, True), name
        assert torch.equal(tensor, expected[name].to(tensor.device)), name
