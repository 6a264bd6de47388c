"""Writes a model directory with random weights of GPT-J-6B's shape, which costs what the real model costs.

Usage: scripts/benchmark random-6b DIR

The tokenizer is the demo model's. Prompts of any length can be made with it; most generated ids are beyond
its vocabulary, so they have no text. There is no end-of-sequence token, so answers have the length asked for.
"""

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from safetensors.torch import save_file

from gptj_serve import demo
from gptj_serve.models.families import read_architecture, tensors_of

GPT_J_6B = {
    "architectures": ["GPTJForCausalLM"],
    "model_type": "gptj",
    "activation_function": "gelu_new",
    "n_layer": 28,
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_positions": 2048,
    "rotary_dim": 64,
    "vocab_size": 50400,
    "layer_norm_epsilon": 1e-05,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "eos_token_id": None,
    "bos_token_id": None,
}
SEED = 0
STD = 0.02
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write(directory: Path) -> None:
    """Write the model directory, 12.1 GB, with one shard for each block."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(GPT_J_6B, indent=1))
    for name in TOKENIZER_FILES:
        shutil.copy(demo.MODEL_DIR / name, directory / name)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(SEED)
    weight_map: dict[str, str] = {}
    for number, shapes in enumerate(_shards()):
        shard = f"model-{number:05d}.safetensors"
        tensors = {name: _random(name, shape, generator) for name, shape in shapes.items()}
        save_file(tensors, directory / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if ".ln_" in name:
        return torch.full(shape, float(name.endswith("weight")), dtype=torch.float16)
    values = torch.empty(shape, dtype=torch.float16, device=generator.device)
    return values.normal_(0.0, STD, generator=generator).cpu()


def _shards() -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of the model's tensors by shard: one for each block, the others in their files' order."""
    parts = tensors_of(read_architecture(GPT_J_6B, Path("config.json")))
    for _, shard in groupby(parts, key=lambda name: parts[name].layer):
        yield {name: parts[name].shape for name in shard}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark random-6b", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("directory", type=Path, help="where to; 12.1 GB")
    write(parser.parse_args(arguments).directory)
