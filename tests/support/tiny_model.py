"""Writes tiny GPT-J model directories with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from gptj_serve.models.config import CONFIG
from gptj_serve.models.families import read_architecture, shapes_of

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["GPTJForCausalLM"],
    "model_type": "gptj",
    "n_layer": 2,
    "n_embd": 32,
    "n_head": 4,
    "rotary_dim": 4,
    "n_positions": 64,
    "vocab_size": 100,
    "bos_token_id": 99,
    "eos_token_id": 99,
    "activation_function": "gelu_new",
    "tie_word_embeddings": False,
}


def random_tensors(config: dict[str, Any], dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights spread widely enough that greedy decoding is no constant."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes_of(read_architecture(config, Path(CONFIG))).items():
        noise = torch.randn(shape, generator=generator)
        is_norm_scale = "ln_" in name and name.endswith("weight")
        tensors[name] = (1 + 0.1 * noise if is_norm_scale else 0.3 * noise).to(dtype)
    return tensors


def write_model(
    directory: Path,
    *,
    dtype: torch.dtype = torch.float32,
    files: str = "safetensors",
    seed: int = 0,
    tensors: dict[str, torch.Tensor] | None = None,
    **config: Any,
) -> Path:
    """Write a model directory.

    Args:
        directory: Where to; made if need be.
        dtype: Type of the random weights.
        files: "safetensors", "sharded safetensors", "pickle" or "sharded pickle".
        seed: Of the random weights.
        tensors: Written instead of random weights.
        config: Overrides `TINY_CONFIG`.

    Returns:
        The directory.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = TINY_CONFIG | config
    (directory / CONFIG).write_text(json.dumps(config))
    tensors = random_tensors(config, dtype, seed) if tensors is None else tensors
    if "sharded" in files:
        _write_shards(directory, tensors, files)
    else:
        _save(tensors, directory / ("pytorch_model.bin" if "pickle" in files else "model.safetensors"))
    return directory


def _write_shards(directory: Path, tensors: dict[str, torch.Tensor], files: str) -> None:
    stem, suffix = ("pytorch_model", "bin") if "pickle" in files else ("model", "safetensors")
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file_name = f"{stem}-{number:05}-of-00002.{suffix}"
        _save({name: tensors[name] for name in part}, directory / file_name)
        weight_map |= dict.fromkeys(part, file_name)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path, metadata={"format": "pt"})
