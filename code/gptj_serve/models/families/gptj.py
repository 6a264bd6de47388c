"""GPT-J: parallel residual with one LayerNorm, rotary positions in neighbouring pairs, a head with a bias."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError
from gptj_serve.models import config
from gptj_serve.models.architecture import EMBEDDING, TIED_HEAD, Architecture, Part, Role, Rotary

FAMILY = "gptj"
"""The family's ``model_type`` in config.json."""

ARCHITECTURE = "GPTJForCausalLM"

# far above every model of this kind; below these bounds, checking a checkpoint takes less than a second
_RANGES = {
    "n_layer": (28, 1, 1024),
    "n_embd": (4096, 1, 1 << 16),
    "n_head": (16, 1, 1024),
    "n_inner": (None, 1, 1 << 18),
    "rotary_dim": (64, 2, 1 << 16),
    "n_positions": (2048, 2, 1 << 20),
    "vocab_size": (50400, 1, 1 << 20),
}
"""The default, the least and the greatest value of every whole number."""

_DEFAULT_EPSILON = 1e-5
_DEFAULT_ACTIVATION = "gelu_new"
_FRACTIONS = ("layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range")

_OTHER_TASKS = re.compile(r".*GPTJ(Model|ForSequenceClassification|ForQuestionAnswering)")
"""GPT-Js without the language model's head, also under a wrapper's name."""


def read(raw: Mapping[str, Any], path: Path) -> Architecture:
    """See `gptj_serve.models.families.read_architecture`; the defaults are GPT-J-6B's."""
    _check_architecture(raw, path)
    given = {key: config.whole_number(raw, key, path, *_RANGES[key]) for key in _RANGES if key != "n_inner"}
    width, num_heads, rotary_dim = given["n_embd"], given["n_head"], given["rotary_dim"]
    has_inner = raw.get("n_inner") is not None
    inner = config.whole_number(raw, "n_inner", path, *_RANGES["n_inner"]) if has_inner else 4 * width
    fractions = {key: config.fraction(raw, key, path) for key in _FRACTIONS if key in raw}
    if not isinstance(activation := raw.get("activation_function", _DEFAULT_ACTIVATION), str):
        raise StartupError(f"{path}: activation_function={activation!r}: must be a name, as gelu_new")
    if width % num_heads:
        raise StartupError(f"{path}: n_embd={width} is not a multiple of n_head={num_heads}")
    if rotary_dim % 2 or rotary_dim > width // num_heads:
        raise StartupError(
            f"{path}: rotary_dim={rotary_dim} must be even and at most n_embd / n_head = {width // num_heads}"
        )
    return Architecture(
        family=FAMILY,
        num_layers=given["n_layer"],
        width=width,
        num_heads=num_heads,
        head_dim=width // num_heads,
        inner=inner,
        vocab_size=given["vocab_size"],
        max_positions=given["n_positions"],
        positions=Rotary(rotary_dim),
        activation=activation,
        epsilon=fractions.get("layer_norm_epsilon", _DEFAULT_EPSILON),
        tied_head=config.flag(raw, "tie_word_embeddings", path, default=False),
    )


def notes(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """See `gptj_serve.models.families.config_notes`."""
    names = raw.get("architectures")
    if names in (None, [ARCHITECTURE]):
        return ()
    return (f"{path}: architectures is {names!r}, and is ignored: the weights are {ARCHITECTURE}'s",)


def tensors(architecture: Architecture) -> dict[str, Part]:
    """See `gptj_serve.models.families.tensors_of`."""
    d, inner, vocab = architecture.width, architecture.inner, architecture.vocab_size
    attention = architecture.attention_width
    block: dict[str, tuple[tuple[int, ...], Role]] = {
        "ln_1.weight": ((d,), Role.NORM),
        "ln_1.bias": ((d,), Role.NORM_BIAS),
        "attn.q_proj.weight": ((attention, d), Role.QUERY),
        "attn.k_proj.weight": ((attention, d), Role.KEY),
        "attn.v_proj.weight": ((attention, d), Role.VALUE),
        "attn.out_proj.weight": ((d, attention), Role.ATTENTION_OUT),
        "mlp.fc_in.weight": ((inner, d), Role.INNER_IN),
        "mlp.fc_in.bias": ((inner,), Role.INNER_IN_BIAS),
        "mlp.fc_out.weight": ((d, inner), Role.INNER_OUT),
        "mlp.fc_out.bias": ((d,), Role.INNER_OUT_BIAS),
    }
    parts = {EMBEDDING: Part((vocab, d), Role.EMBEDDING)}
    for layer in range(architecture.num_layers):
        prefix = f"transformer.h.{layer}"
        parts |= {f"{prefix}.{name}": Part(shape, role, layer) for name, (shape, role) in block.items()}
    parts["transformer.ln_f.weight"] = Part((d,), Role.LAST_NORM)
    parts["transformer.ln_f.bias"] = Part((d,), Role.LAST_NORM_BIAS)
    if not architecture.tied_head:
        parts[TIED_HEAD] = Part((vocab, d), Role.HEAD)
    parts["lm_head.bias"] = Part((vocab,), Role.HEAD_BIAS)
    return parts


def _check_architecture(raw: Mapping[str, Any], path: Path) -> None:
    """Check the architecture. The model type decides, as in Transformers; wrappers write other names."""
    model_type, names = raw.get("model_type"), config.architectures(raw, path, ARCHITECTURE)
    is_gpt_j = model_type == FAMILY or (model_type is None and names and names[0].endswith(ARCHITECTURE))
    if not is_gpt_j or any(_OTHER_TASKS.fullmatch(name) for name in names):
        raise StartupError(
            f"{path}: model_type is {model_type!r} and architectures is {raw.get('architectures')!r}; "
            f"supported: {ARCHITECTURE} (model_type {FAMILY!r})"
        )
    config.check_plain(raw, path)
