"""The layout of the packed weights, and that every part of it is written by one tensor."""

from pathlib import Path

import pytest
import torch

from gptj_serve.engine.fused.weights.pack import empty_weights, slots
from gptj_serve.models.architecture import Architecture
from gptj_serve.models.families import read_architecture, shapes_of
from support.packed_weights import named_tensors
from support.tiny_model import TINY_CONFIG

CPU = torch.device("cpu")
SHAPES = [{}, {"n_layer": 1}, {"n_layer": 3, "n_inner": 40, "vocab_size": 7}, {"n_embd": 8, "n_head": 1}]


def config(**changes: int | bool) -> Architecture:
    return read_architecture(TINY_CONFIG | changes, Path("config.json"))


def test_shapes_of_gpt_j_6b() -> None:
    gpt_j = read_architecture({"model_type": "gptj"}, Path("config.json"))
    weights = empty_weights(gpt_j, torch.device("meta"), torch.float16, is_tied=False)
    layer = {"project": (28672, 4096), "project_bias": (16384,), "add": (4096, 20480), "add_bias": (4096,)}
    norm = {"norm_weight": (4096,), "norm_bias": (4096,)}
    assert {name: tuple(tensor.shape) for name, tensor in named_tensors(weights).items()} == {
        "embedding": (50400, 4096),
        "head": (50400, 4096),
        "head_bias": (50400,),
        **{f"{index}.{name}": shape for index in range(28) for name, shape in layer.items()},
        **{f"{index}.{name}": shape for index in range(29) for name, shape in norm.items()},
    }
    assert weights.num_bytes == 2 * 6_050_882_784


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("changes", SHAPES)
def test_the_slots_cover_every_number_once(changes: dict[str, int], is_tied: bool) -> None:
    dims = config(**changes, tie_word_embeddings=is_tied)
    weights = empty_weights(dims, CPU, torch.float32, is_tied=is_tied)
    for tensor in weights.tensors():
        tensor.zero_()
    expected = shapes_of(dims)
    found = slots(weights, dims)
    assert found.keys() == expected.keys()
    for name, slot in found.items():
        rows, columns = slot.shape
        assert (rows, columns) == ((1, *expected[name]) if len(expected[name]) == 1 else expected[name]), name
        slot.put(torch.ones(rows, columns), 0, 0)
    # the slots together are as large as the weights: none is written twice if none is left out
    total = sum(torch.Size(shape).numel() for shape in expected.values())
    kept = {id(tensor): tensor for tensor in weights.tensors()}
    assert sum(int(tensor.sum()) for tensor in kept.values()) == total
    assert sum(tensor.numel() for tensor in kept.values()) == total
    assert weights.num_bytes == 4 * total


def test_a_tied_head_is_the_embedding() -> None:
    weights = empty_weights(config(), CPU, torch.float32, is_tied=True)
    assert weights.head.tensors[0] is weights.embedding_VD
    assert weights.is_tied
    assert not empty_weights(config(), CPU, torch.float32, is_tied=False).is_tied


def test_a_slot_takes_parts_of_any_type() -> None:
    weights = empty_weights(config(), CPU, torch.float32, is_tied=False)
    (out_DK,) = weights.layers[1].products[1].matrix.tensors
    out_DK.zero_()
    part = torch.tensor([[1.5, 2.0], [3.0, -4.0]], dtype=torch.bfloat16)
    slots(weights, config())["transformer.h.1.attn.out_proj.weight"].put(part, 7, 3)
    assert torch.equal(out_DK[7:9, 128 + 3 : 128 + 5], part.float())
    assert out_DK.count_nonzero() == 4
