"""Writes a trained demo model: float16 weights, tokenizer, configuration and ``metrics.json``."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, GPTJConfig, GPTJForCausalLM

from gptj_serve.demo.corpus import Document
from gptj_serve.demo.evaluate import METRICS_FILE, continuations, heldout_scores, load_model
from gptj_serve.demo.options import TrainOptions
from gptj_serve.demo.tokenizer import END_OF_TEXT_ID, load_tokenizer, save_tokenizer, token_stream

MAX_WEIGHTS_BYTES = 10_000_000
WEIGHTS_FILE = "model.safetensors"
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """How a model came about.

    Attributes:
        options: What was asked for.
        steps: Optimizer steps done.
        best_step: The step whose weights were kept.
        dev_perplexity: Per token, of those weights, in the training dtype.
        seconds: Time the steps took.
        hardware: Name of the device.
    """

    options: TrainOptions
    steps: int
    best_step: int
    dev_perplexity: float
    seconds: float
    hardware: str


def save_model(
    config: GPTJConfig, weights: Mapping[str, torch.Tensor], tokenizer: Tokenizer, out_dir: Path
) -> None:
    """Write the model directory, weights in float16.

    Raises:
        ValueError: The weights' file is larger than `MAX_WEIGHTS_BYTES`.
    """
    model = GPTJForCausalLM(config)  # type: ignore[no-untyped-call]
    model.load_state_dict(weights)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=END_OF_TEXT_ID, eos_token_id=END_OF_TEXT_ID, pad_token_id=END_OF_TEXT_ID
    )
    model.to(torch.float16).save_pretrained(out_dir)  # type: ignore[arg-type]
    (out_dir / WEIGHTS_FILE).chmod(0o644)  # safetensors makes it readable for its owner alone
    save_tokenizer(tokenizer, out_dir, config.n_positions)
    num_bytes = (out_dir / WEIGHTS_FILE).stat().st_size
    if num_bytes > MAX_WEIGHTS_BYTES:
        raise ValueError(f"{WEIGHTS_FILE} has {num_bytes} bytes, more than {MAX_WEIGHTS_BYTES}")


def write_metrics(
    model_dir: Path, corpus_dir: Path, documents: Mapping[str, Sequence[Document]], record: TrainingRecord
) -> None:
    """Measure what was saved (not what was trained) and write ``metrics.json``.

    Args:
        model_dir: What `save_model` wrote.
        corpus_dir: Where the corpus came from, for the versions of its packages.
        documents: Every split of the corpus.
        record: How the model was trained.
    """
    model, tokenizer = load_model(model_dir, record.options.device), load_tokenizer(model_dir)
    scores = heldout_scores(model, tokenizer, documents["train"], documents["heldout"])
    metrics = {
        "heldout_scores": {name: asdict(score) for name, score in scores.items()},
        "corpus": {split: _size(tokenizer, group) for split, group in documents.items()},
        "packages": _packages(corpus_dir),
        "num_parameters": model.num_parameters(),
        "weights_bytes": (model_dir / WEIGHTS_FILE).stat().st_size,
        "training": asdict(record),
        "versions": {name: version(name) for name in _LIBRARIES},
        # on the CPU whatever trained the model: that is where the tests repeat them
        "continuations": continuations(model.cpu(), tokenizer),
    }
    text = json.dumps(metrics, indent=2, ensure_ascii=False) + "\n"
    text = re.sub(r"\[[\d,\s]+\]", lambda ids: " ".join(ids[0].split()), text)  # one line a list of ids
    (model_dir / METRICS_FILE).write_text(text, "utf-8")


def _size(tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, int]:
    texts = [document.text for document in documents]
    return {
        "documents": len(texts),
        "tokens": len(token_stream(tokenizer, texts)),
        "characters": sum(map(len, texts)),
    }


def _packages(corpus_dir: Path) -> dict[str, Any]:
    path = corpus_dir / "packages.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}
