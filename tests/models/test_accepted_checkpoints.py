"""What Transformers loads, every engine loads with the same numbers; a note names what is unusual."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPTJForCausalLM

from gptj_serve.engine.fused.weights.load import load_weights
from gptj_serve.engine.static.transformers_loader import load_model
from gptj_serve.errors import StartupError
from gptj_serve.models.architecture import EMBEDDING, TIED_HEAD
from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import find_checkpoint
from support.packed_weights import assert_packed
from support.tiny_model import TINY_CONFIG, random_tensors, write_model

CPU = torch.device("cpu")
FORMATS = ("safetensors", "sharded safetensors", "pickle", "sharded pickle")
Tensors = dict[str, torch.Tensor]


def whole(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    return random_tensors(TINY_CONFIG, dtype, seed)


def tied_without(*names: str, files: str) -> Callable[[Path], object]:
    tensors = {name: tensor for name, tensor in whole().items() if name not in names}
    return lambda path: write_model(path, files=files, tensors=tensors, tie_word_embeddings=True)


def with_config(**changes: Any) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        write_model(path)
        (path / CONFIG).write_text(json.dumps(TINY_CONFIG | changes))

    return build


def beside(files: str, extra: Tensors) -> Callable[[Path], object]:
    return lambda path: write_model(path, files=files, tensors=whole() | extra)


def with_values(extra: dict[str, Any]) -> Callable[[Path], object]:
    def build(path: Path) -> None:
        write_model(path, files="pickle")
        torch.save(whole() | extra, path / "pytorch_model.bin")

    return build


def in_two_shards(files: str, second: Tensors) -> Callable[[Path], object]:
    """The second shard repeats tensors of the first one."""

    def build(path: Path) -> None:
        write_model(path, files=files)
        shard = sorted(path.glob("*-00002-of-00002.*"))[0]
        inside = sorted(whole())[1::2]
        tensors = {name: whole()[name] for name in inside} | second
        if files.endswith("pickle"):
            torch.save(tensors, shard)
        else:
            save_file(tensors, shard, {"format": "pt"})

    return build


def before_1_6(path: Path, tensors: Tensors | None = None) -> None:
    write_model(path, files="pickle")
    torch.save(tensors or whole(), path / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def tied_before_1_6(path: Path) -> None:
    tensors = whole()
    tensors[TIED_HEAD] = tensors[EMBEDDING]  # one storage, stored once
    before_1_6(path, tensors)


def shards_before_1_6(path: Path) -> None:
    write_model(path, files="sharded pickle")
    for shard in path.glob("*.bin"):
        torch.save(torch.load(shard), shard, _use_new_zipfile_serialization=False)


VALUE_HEAD = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
LONG_TABLE = {"transformer.h.0.attn.embed_positions": torch.ones(64, 4)}

CASES: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "as it should be": (write_model, None),
    "tied": (tied_without(TIED_HEAD, files="safetensors"), None),
    **{f"tied, without wte, {files}": (tied_without(EMBEDDING, files=files), None) for files in FORMATS},
    **{f"value head, {files}": (beside(files, VALUE_HEAD), "v_head.summary.weight") for files in FORMATS},
    "a table of old Transformers": (beside("safetensors", LONG_TABLE), None),
    "a number": (with_values({"global_step": 3, "args": {"lr": 0.1}}), "global_step, args"),
    "twice, safetensors": (
        in_two_shards("sharded safetensors", {"lm_head.bias": torch.ones(100)}),
        "lm_head.bias",
    ),
    "twice, pickle": (in_two_shards("sharded pickle", {"lm_head.bias": torch.ones(100)}), "lm_head.bias"),
    "FSDP's name": (with_config(architectures=["FSDPGPTJForCausalLM"]), "FSDPGPTJForCausalLM"),
    "a compiled model's name": (with_config(architectures=["OptimizedModule"]), "OptimizedModule"),
    "no architectures": (with_config(architectures=[]), "[]"),
    "null architectures": (with_config(architectures=None), None),
    "no epsilon to speak of": (with_config(layer_norm_epsilon=0.0), None),
    "before PyTorch 1.6": (before_1_6, None),
    "before PyTorch 1.6, half": (lambda path: before_1_6(path, whole(torch.float16)), None),
    "before PyTorch 1.6, one storage": (tied_before_1_6, None),
    "before PyTorch 1.6, shards": (shards_before_1_6, None),
    **{
        f"{dtype}, {files}": (
            lambda path, dtype=dtype, files=files: write_model(path, files=files, tensors=whole(dtype)),
            None,
        )
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float64)
        for files in ("safetensors", "pickle")
    },
}


@pytest.mark.parametrize("name", CASES)
def test_what_transformers_loads_is_loaded(tmp_path: Path, name: str) -> None:
    build, noted = CASES[name]
    build(tmp_path)
    right = GPTJForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True).state_dict()
    checkpoint = find_checkpoint(tmp_path)
    assert [noted in note for note in checkpoint.notes] == ([True] if noted else [])
    loaded = load_model(checkpoint, CPU, torch.float32).state_dict()
    assert loaded.keys() == right.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in right.items())
    assert_packed(load_weights(checkpoint, CPU, torch.float32), right, torch.float32)


def test_a_head_alone_is_held_once(tmp_path: Path) -> None:
    tied_without(EMBEDDING, files="safetensors")(tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    weights = load_weights(checkpoint, CPU, torch.float32)
    assert weights.is_tied
    assert weights.num_bytes == 4 * checkpoint.num_weights


def test_a_head_alone_is_not_enough_where_nothing_is_tied(tmp_path: Path) -> None:
    write_model(tmp_path, tensors={name: tensor for name, tensor in whole().items() if name != EMBEDDING})
    with pytest.raises(StartupError, match=r"missing: transformer\.wte\.weight"):
        find_checkpoint(tmp_path)


def test_notes_name_files(tmp_path: Path) -> None:
    in_two_shards("sharded pickle", {"lm_head.bias": torch.ones(100)})(tmp_path)
    (note,) = find_checkpoint(tmp_path).notes
    first, second = (tmp_path / f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
    assert note == f"{second}: {first.name} holds these as well and is ignored there: lm_head.bias"


@pytest.mark.parametrize("kept", [10, 40, 0.3, 0.9, -1])
def test_a_truncated_file_of_before_1_6(tmp_path: Path, kept: float) -> None:
    before_1_6(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if 0 < kept < 1 else int(kept)])
    with pytest.raises(StartupError) as caught:
        load_weights(find_checkpoint(tmp_path), CPU, torch.float32)
    assert str(caught.value).startswith(f"{path}: ")
    assert "copy it again" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["GPTJModel", "FSDPGPTJModel", "GPTJForSequenceClassification", "GPTJForQuestionAnswering"],
)
def test_models_for_another_task_are_refused(tmp_path: Path, name: str) -> None:
    with_config(architectures=[name])(tmp_path)
    with pytest.raises(StartupError, match=f"{name}.*supported: GPTJForCausalLM"):
        find_checkpoint(tmp_path)
