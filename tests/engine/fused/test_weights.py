"""The layout of the packed weights, and that every part of it is written by one tensor."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tiny import TINY_CONFIG

from gptj_serve.engine.fused.weights.pack import PackedWeights, empty_weights, slots
from gptj_serve.models.config import ModelConfig, expected_shapes, parse_config

CPU = torch.device("cpu")
SHAPES = [{}, {"n_layer": 1}, {"n_layer": 3, "n_inner": 40, "vocab_size": 7}, {"n_embd": 8, "n_head": 1}]


def config(**changes: int | bool) -> ModelConfig:
    return parse_config(TINY_CONFIG | changes, Path("config.json"))


def tensors(weights: PackedWeights) -> dict[str, torch.Tensor]:
    values = {field.name: getattr(weights, field.name) for field in fields(weights)}
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def test_shapes_of_gpt_j_6b() -> None:
    gpt_j = parse_config({"model_type": "gptj"}, Path("config.json"))
    weights = empty_weights(gpt_j, torch.device("meta"), torch.float16, is_tied=False)
    assert {name: tuple(tensor.shape) for name, tensor in tensors(weights).items()} == {
        "embedding_VD": (50400, 4096),
        "in_weight_LND": (28, 28672, 4096),
        "in_bias_LF": (28, 16384),
        "out_weight_LDK": (28, 4096, 20480),
        "out_bias_LD": (28, 4096),
        "norm_weight_LD": (29, 4096),
        "norm_bias_LD": (29, 4096),
        "head_weight_VD": (50400, 4096),
        "head_bias_V": (50400,),
    }
    assert weights.num_bytes == 2 * 6_050_882_784


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("changes", SHAPES)
def test_the_slots_cover_every_number_once(changes: dict[str, int], is_tied: bool) -> None:
    dims = config(**changes, tie_word_embeddings=is_tied)
    weights = empty_weights(dims, CPU, torch.float32, is_tied=is_tied)
    for tensor in tensors(weights).values():
        tensor.zero_()
    expected = expected_shapes(dims)
    found = slots(weights)
    assert found.keys() == expected.keys()
    for name, slot in found.items():
        rows, columns = slot.shape
        assert (rows, columns) == ((1, *expected[name]) if len(expected[name]) == 1 else expected[name]), name
        slot.put(torch.ones(rows, columns), 0, 0)
    # the slots together are as large as the weights: none is written twice if none is left out
    total = sum(torch.Size(shape).numel() for shape in expected.values())
    kept = {id(tensor): tensor for tensor in tensors(weights).values()}
    assert sum(int(tensor.sum()) for tensor in kept.values()) == total
    assert sum(tensor.numel() for tensor in kept.values()) == total
    assert weights.num_bytes == 4 * total


def test_a_tied_head_is_the_embedding() -> None:
    weights = empty_weights(config(), CPU, torch.float32, is_tied=True)
    assert weights.head_weight_VD is weights.embedding_VD
    assert weights.is_tied
    assert not empty_weights(config(), CPU, torch.float32, is_tied=False).is_tied


def test_a_slot_takes_parts_of_any_type() -> None:
    weights = empty_weights(config(), CPU, torch.float32, is_tied=False)
    weights.out_weight_LDK.zero_()
    part = torch.tensor([[1.5, 2.0], [3.0, -4.0]], dtype=torch.bfloat16)
    slots(weights)["transformer.h.1.attn.out_proj.weight"].put(part, 7, 3)
    assert torch.equal(weights.out_weight_LDK[1, 7:9, 128 + 3 : 128 + 5], part.float())
    assert weights.out_weight_LDK.count_nonzero() == 4


def test_a_format_that_nobody_can_write() -> None:
    weights = replace(empty_weights(config(), CPU, torch.float32, is_tied=False), format="int3")
    with pytest.raises(ValueError, match="'int3' cannot be filled; known: plain"):
        slots(weights)
