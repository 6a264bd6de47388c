"""Finds the model and checks it before anything is loaded: where it is, what it is, whether it is whole.

A wrong model is a `StartupError` within a second, not a failure minutes into the start. No torch here.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from gptj_serve.errors import StartupError
from gptj_serve.models import checkpoint_files
from gptj_serve.models.checkpoint_files import CheckpointFiles, TensorInfo, read_json, some
from gptj_serve.settings import DEFAULT_MODEL_DIR

T = TypeVar("T", bound=TensorInfo)

CONFIG = "config.json"
ARCHITECTURE = "GPTJForCausalLM"
MODEL_TYPE = "gptj"

GPT_J_EOS = 50256
"""<|endoftext|> of the published tokenizer."""

MAX_DEPTH = 4
"""Sub-folders below the root that are searched; a tarball nests one or two."""

TIED_HEAD = "lm_head.weight"
"""Left out of checkpoints that tie it to the embedding, as a rule."""

# causal masks that checkpoints of old Transformers carry along; computed anew since
_HARMLESS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")


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
        tie_word_embeddings: ``lm_head`` shares the embedding's weight.
    """

    n_layer: int
    n_embd: int
    n_head: int
    n_inner: int
    rotary_dim: int
    n_positions: int
    vocab_size: int
    tie_word_embeddings: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint(ModelConfig):
    """A model directory that was found whole.

    Attributes:
        directory: Where config.json is.
        eos_token_ids: Token ids that end a sequence; may be empty.
        files: The weight files.
        num_weights: Numbers in all tensors of the model.
    """

    directory: Path
    eos_token_ids: tuple[int, ...]
    files: CheckpointFiles
    num_weights: int


def find_checkpoint(root: Path) -> Checkpoint:
    """Find the one model under a directory and check it without loading it.

    Args:
        root: The directory to search, itself included.

    Raises:
        StartupError: No model, several, another architecture, or weights that are missing, left
            over, of other shapes, truncated, corrupt or unsafe; says which, where and what is right.
    """
    directory = find_directory(root)
    raw = read_json(directory / CONFIG)
    config = parse_config(raw, directory / CONFIG)
    files = checkpoint_files.find_files(directory)
    expected = expected_shapes(config)
    check_tensors(checkpoint_files.read_tensors(files), expected, directory)
    return Checkpoint(
        **asdict(config),
        directory=directory,
        eos_token_ids=_eos_token_ids(directory, raw, config.vocab_size),
        files=files,
        num_weights=sum(map(math.prod, expected.values())),
    )


def mount_hint(root: Path) -> str:
    """What to do about a missing model where containers expect one: nobody set that name there."""
    return f"; mount it there (docker run -v MODEL:{root}:ro)" if root == DEFAULT_MODEL_DIR else ""


def find_directory(root: Path) -> Path:
    """The one directory under ``root`` (itself included) that holds a model.

    A directory that holds a model is not searched further: training leaves older checkpoints there.

    Raises:
        StartupError: None is there, or several are.
    """
    if not root.is_dir():
        raise StartupError(f"GPTJ_MODEL_DIR={root}: no such directory{mount_hint(root)}")
    try:
        found = list(_candidates(root, MAX_DEPTH))
    except OSError as error:
        raise StartupError(f"{error.filename}: cannot be read: {error.strerror}") from error
    whole = [directory for directory, is_whole in found if is_whole]
    # one directory may be reached by several links
    by_place = {directory.resolve(): directory for directory in reversed(whole or [one for one, _ in found])}
    candidates = list(reversed(by_place.values()))
    if not candidates:
        raise StartupError(
            f"GPTJ_MODEL_DIR={root}: no model there, nor in its sub-folders ({MAX_DEPTH} levels); "
            f"expected a directory with {CONFIG} and one of {', '.join(checkpoint_files.NAMES)}"
            f"{mount_hint(root)}"
        )
    if len(candidates) > 1:
        listed = some([str(directory) for directory in candidates])
        raise StartupError(f"GPTJ_MODEL_DIR={root}: several models; point it at one of: {listed}")
    return candidates[0]


def _candidates(directory: Path, depth: int) -> Iterator[tuple[Path, bool]]:
    """Directories with a config or weights, the nearest first, and whether they have both."""
    level = [directory]
    for _ in range(depth + 1):
        below: list[Path] = []
        for folder in level:
            has_config = (folder / CONFIG).is_file()
            has_weights = any((folder / name).is_file() for name in checkpoint_files.NAMES)
            if has_config or has_weights:
                yield folder, has_config and has_weights
            if not (has_config and has_weights):
                below.extend(_sub_folders(folder))
        level = below


def _sub_folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    # `code` holds a customer's scripts, never a model; __MACOSX is what macOS adds to archives
    return [folder / name for name in sorted(names) if name[0] != "." and name not in ("__MACOSX", "code")]


def parse_config(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """The dimensions in a config.json; names that are not given have GPT-J-6B's values.

    Raises:
        StartupError: Not a GPT-J, quantized, or dimensions that make no sense.
    """
    _check_architecture(raw, path)
    n_embd = _positive(raw, "n_embd", 4096, path)
    config = ModelConfig(
        n_layer=_positive(raw, "n_layer", 28, path),
        n_embd=n_embd,
        n_head=_positive(raw, "n_head", 16, path),
        n_inner=_positive(raw, "n_inner", 4 * n_embd, path),
        rotary_dim=_positive(raw, "rotary_dim", 64, path),
        n_positions=_positive(raw, "n_positions", 2048, path),
        vocab_size=_positive(raw, "vocab_size", 50400, path),
        tie_word_embeddings=raw.get("tie_word_embeddings") is True,
    )
    if config.n_embd % config.n_head:
        raise StartupError(f"{path}: n_embd={config.n_embd} is not a multiple of n_head={config.n_head}")
    if config.rotary_dim % 2 or config.rotary_dim > config.n_embd // config.n_head:
        raise StartupError(
            f"{path}: rotary_dim={config.rotary_dim} must be even and at most "
            f"n_embd / n_head = {config.n_embd // config.n_head}"
        )
    return config


def _check_architecture(raw: Mapping[str, Any], path: Path) -> None:
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    fits = (model_type in (None, MODEL_TYPE), architectures in (None, [ARCHITECTURE]))
    if not all(fits) or (model_type is None and architectures is None):
        raise StartupError(
            f"{path}: model_type is {model_type!r} and architectures is {architectures!r}; "
            f"supported: {ARCHITECTURE} (model_type {MODEL_TYPE!r})"
        )
    # each of these would make Transformers load something else than the files that were checked
    for key in ("quantization_config", "transformers_weights", "fusion_config"):
        if raw.get(key) is not None:
            raise StartupError(f"{path}: {key} is not supported; remove it and give plain float weights")


def _positive(raw: Mapping[str, Any], key: str, default: int, path: Path) -> int:
    value = raw.get(key)
    if value is None:
        return default
    if type(value) is not int or value < 1:
        raise StartupError(f"{path}: {key}={value!r}: must be a whole number of at least 1")
    return value


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
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (vocab, d)}
    for layer in range(config.n_layer):
        shapes |= {f"transformer.h.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,)}
    if not config.tie_word_embeddings:
        shapes[TIED_HEAD] = (vocab, d)
    return shapes | {"lm_head.bias": (vocab,)}


def check_tensors(
    found: Mapping[str, T], expected: Mapping[str, tuple[int, ...]], directory: Path
) -> dict[str, T]:
    """Compare a checkpoint's tensors with those of the model.

    Names may lack the prefix ``transformer.``, as Transformers lets them.

    Returns:
        The tensors by their full names, without what is no weight.

    Raises:
        StartupError: Tensors are missing, left over, there twice, or of another shape or type; names them.
    """
    named = _by_full_name(found, expected, directory)
    missing = [name for name in expected if name not in named]
    left_over = [name for name in named if name not in expected and name != TIED_HEAD]
    wrong = [
        f"{name} is {list(named[name].shape)}{'' if named[name].is_float else ' of no float type'}, "
        f"expected {list(shape)}"
        for name, shape in expected.items()
        if name in named and (named[name].shape, named[name].is_float) != (shape, True)
    ]
    problems = {"missing": missing, "left over": left_over, "wrong": wrong}
    if any(problems.values()):
        told = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
        raise StartupError(f"{directory}: the weights do not fit {CONFIG}: {told}")
    return named


def _by_full_name(found: Mapping[str, T], expected: Mapping[str, Any], directory: Path) -> dict[str, T]:
    named: dict[str, T] = {}
    for name, tensor in found.items():
        if _HARMLESS.fullmatch(name):
            continue
        full_name = f"transformer.{name}" if f"transformer.{name}" in expected else name
        if full_name in named:
            short_name = full_name.removeprefix("transformer.")
            raise StartupError(f"{directory}: the weights hold both {full_name} and {short_name}")
        named[full_name] = tensor
    return named


def _eos_token_ids(directory: Path, raw: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """From generation_config.json if it says, else from config.json; GPT-J's own if neither does."""
    path = directory / "generation_config.json"
    value = read_json(path).get("eos_token_id") if path.is_file() else None
    if value is None:
        path = directory / CONFIG
        value = raw.get("eos_token_id", GPT_J_EOS if vocab_size > GPT_J_EOS else None)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int and 0 <= token_id < vocab_size for token_id in ids):
        raise StartupError(f"{path}: eos_token_id={value!r}: must be token ids from 0 to {vocab_size - 1}")
    return tuple(ids)
