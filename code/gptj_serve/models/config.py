"""What a config.json says of a GPT-J: numbers, each in its range, and the tensors that follow from them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError

CONFIG = "config.json"
ARCHITECTURE = "GPTJForCausalLM"
MODEL_TYPE = "gptj"

TIED_HEAD = "lm_head.weight"
"""Left out of checkpoints that tie it to the embedding, as a rule."""
EMBEDDING = "transformer.wte.weight"
"""Left out instead by safetensors' ``save_model``."""

# far above every model of this kind; below them, what a number leads to is looked at within a second
_RANGES = {
    "n_layer": (28, 1, 1024),
    "n_embd": (4096, 1, 1 << 16),
    "n_head": (16, 1, 1024),
    "n_inner": (None, 1, 1 << 18),
    "rotary_dim": (64, 2, 1 << 16),
    "n_positions": (2048, 2, 1 << 20),
    "vocab_size": (50400, 1, 1 << 20),
}
"""Default, least and most of every whole number."""

DEFAULT_EPSILON = 1e-5
_FRACTIONS = ("layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")

_OTHER_TASKS = re.compile(r".*GPTJ(Model|ForSequenceClassification|ForQuestionAnswering)")
"""GPT-Js without the language model's head, also under a wrapper's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A GPT-J's dimensions, under the names of Transformers' ``GPTJConfig``.

    Attributes:
        n_layer: Blocks.
        n_embd: Width of the residual stream.
        n_head: Attention heads of ``n_embd / n_head`` dimensions each.
        n_inner: Width of the MLP.
        rotary_dim: Dimensions of each head that are rotated.
        n_positions: Longest context.
        vocab_size: Token ids.
        layer_norm_epsilon: Added to the variance in each LayerNorm.
        tie_word_embeddings: ``lm_head`` shares the embedding's weight.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_inner: int
    rotary_dim: int
    n_positions: int
    vocab_size: int
    layer_norm_epsilon: float = DEFAULT_EPSILON
    tie_word_embeddings: bool


def parse_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """The dimensions in a config.json; names that are not given have GPT-J-6B's values.

    Raises:
        StartupError: Not a GPT-J, quantized, or numbers that are out of their range or make no sense.
    """
    _check_architecture(raw, path)
    numbers = {key: _whole_number(raw, key, path) for key in _RANGES if key != "n_inner"}
    inner = 4 * numbers["n_embd"] if raw.get("n_inner") is None else _whole_number(raw, "n_inner", path)
    fractions = {key: _fraction(raw, key, path) for key in _FRACTIONS if key in raw}
    tied = raw.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise StartupError(f"{path}: tie_word_embeddings={tied!r}: must be true or false")
    if not isinstance(activation := raw.get("activation_function", ""), str):
        raise StartupError(f"{path}: activation_function={activation!r}: must be a name, as gelu_new")
    epsilon = fractions.get("layer_norm_epsilon", DEFAULT_EPSILON)
    config = ModelConfig(**numbers, n_inner=inner, layer_norm_epsilon=epsilon, tie_word_embeddings=tied)
    if config.n_embd % config.n_head:
        raise StartupError(f"{path}: n_embd={config.n_embd} is not a multiple of n_head={config.n_head}")
    if config.rotary_dim % 2 or config.rotary_dim > config.n_embd // config.n_head:
        raise StartupError(
            f"{path}: rotary_dim={config.rotary_dim} must be even and at most "
            f"n_embd / n_head = {config.n_embd // config.n_head}"
        )
    return config


def config_notes(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """What is unusual in a config.json and changes nothing, a sentence each."""
    architectures = raw.get("architectures")
    if architectures in (None, [ARCHITECTURE]):
        return ()
    return (f"{path}: architectures is {architectures!r}, and is ignored: the weights are {ARCHITECTURE}'s",)


def _check_architecture(raw: Mapping[str, Any], path: Path) -> None:
    """The model type decides, as in Transformers; wrappers write names of their own as the architecture."""
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    names = [] if architectures is None else architectures
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StartupError(f'{path}: architectures={names!r}: must be a list of names, ["{ARCHITECTURE}"]')
    is_gpt_j = model_type == MODEL_TYPE or (model_type is None and names and names[0].endswith(ARCHITECTURE))
    if not is_gpt_j or any(_OTHER_TASKS.fullmatch(name) for name in names):
        raise StartupError(
            f"{path}: model_type is {model_type!r} and architectures is {architectures!r}; "
            f"supported: {ARCHITECTURE} (model_type {MODEL_TYPE!r})"
        )
    # each of these would make Transformers load something else than the files that were checked
    for key in ("quantization_config", "transformers_weights", "fusion_config"):
        if raw.get(key) is not None:
            raise StartupError(f"{path}: {key} is not supported; remove it and give plain float weights")


def _whole_number(raw: Mapping[str, Any], key: str, path: Path) -> int:
    default, least, most = _RANGES[key]
    value = raw.get(key, default)
    if type(value) is not int or not least <= value <= most:
        raise StartupError(f"{path}: {key}={_short(value)}: must be a whole number from {least} to {most}")
    return value


def _fraction(raw: Mapping[str, Any], key: str, path: Path) -> float:
    value = raw[key]
    # Transformers takes whole numbers for some of these alone
    is_number = type(value) is float or (type(value) is int and key.endswith("pdrop"))
    if not is_number or not (math.isfinite(value) and 0 <= value <= 1):
        raise StartupError(f"{path}: {key}={_short(value)}: must be a number from 0.0 to 1.0, as 0.00001")
    return float(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a checkpoint of this model must have."""
    d, inner, vocab = config.n_embd, config.n_inner, config.vocab_size
    block: dict[str, tuple[int, ...]] = {
        "ln_1.weight": (d,),
        "ln_1.bias": (d,),
        **{f"attn.{name}_proj.weight": (d, d) for name in ("q", "k", "v", "out")},
        "mlp.fc_in.weight": (inner, d),
        "mlp.fc_in.bias": (inner,),
        "mlp.fc_out.weight": (d, inner),
        "mlp.fc_out.bias": (d,),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocab, d)}
    for layer in range(config.n_layer):
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    if not config.tie_word_embeddings:
        shapes[TIED_HEAD] = (vocab, d)
    return shapes | {"lm_head.bias": (vocab,)}
