"""Checks that a checkpoint's tensors are those of the model that its config.json describes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import some
from gptj_serve.models.architecture import EMBEDDING, TIED_HEAD
from gptj_serve.models.config import CONFIG
from gptj_serve.models.remedies import merge_command, unwrap_command
from gptj_serve.models.tensors import T, TensorInfo

# masks and tables in checkpoints of old versions of Transformers, which are computed today
_HARMLESS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_bias|bias|embed_positions)")

_OF_THE_MODEL = re.compile(r"(transformer|h|wte|ln_f|lm_head)\..*")
"""Tensors with such names would be a part of the computation if the model knew them."""

_ADAPTER = re.compile(r"(^|.*\.)(lora_\w+|base_layer|modules_to_save)\..*")
_WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_ANCHOR = "ln_f.weight"


def check_tensors(
    found: Mapping[str, T], expected: Mapping[str, tuple[int, ...]], directory: Path
) -> dict[str, T]:
    """Compare a checkpoint's tensors with those of the model.

    Names may lack the prefix ``transformer.``, and a head stands for the embedding that it is tied to, as
    in Transformers.

    Returns:
        The tensors of the model by their full names, a head that is stored though it is tied among them.

    Raises:
        StartupError: Tensors are missing, left over inside the model, there twice, or of another shape or
            type; names them.
    """
    named = _by_full_name(found, expected, directory)
    is_tied = TIED_HEAD not in expected
    if is_tied and EMBEDDING not in named and TIED_HEAD in named:
        named[EMBEDDING] = named.pop(TIED_HEAD)
    missing = [name for name in expected if name not in named]
    if missing:
        _refuse_wrapped(found, expected, directory)
    # a missing tensor may be there under another name
    left_over = [name for name in _unknown(named, expected) if missing or _OF_THE_MODEL.fullmatch(name)]
    heads = {TIED_HEAD: expected[EMBEDDING]}  # also if the head is tied, but stored all the same
    wrong = [
        f"{name} is {list(named[name].shape)}{'' if named[name].is_float else ' of no float type'}, "
        f"expected {list(shape)}"
        for name, shape in {**expected, **heads}.items()
        if name in named and (named[name].shape, named[name].is_float) != (shape, True)
    ]
    problems = {"missing": missing, "left over": left_over, "wrong": wrong}
    if any(problems.values()):
        told = "; ".join(f"{kind}: {some(names)}" for kind, names in problems.items() if names)
        raise StartupError(
            f"{directory}: the weights do not fit {CONFIG}: {told}; take the {CONFIG} that was saved with "
            "these weights, or the whole model again from where both were saved"
        )
    return {name: tensor for name, tensor in named.items() if name in expected or name == TIED_HEAD}


def ignored(found: Mapping[str, TensorInfo], expected: Mapping[str, Any]) -> list[str]:
    """The names of tensors beside a whole model that nothing reads, for example a value head."""
    return [
        name
        for name in _unknown(found, expected)
        if not _OF_THE_MODEL.fullmatch(name) and not _HARMLESS.fullmatch(name)
    ]


def _unknown(found: Mapping[str, TensorInfo], expected: Mapping[str, Any]) -> list[str]:
    return [name for name in found if name not in expected and name != TIED_HEAD]


def _by_full_name(found: Mapping[str, T], expected: Mapping[str, Any], directory: Path) -> dict[str, T]:
    named: dict[str, T] = {}
    for name, tensor in found.items():
        if _HARMLESS.fullmatch(name):
            continue
        full_name = f"transformer.{name}" if f"transformer.{name}" in expected else name
        if full_name in named:
            short_name = full_name.removeprefix("transformer.")
            raise StartupError(
                f"{directory}: the weights hold both {full_name} and {short_name}; save them again with one"
            )
        named[full_name] = tensor
    return named


def _refuse_wrapped(found: Mapping[str, TensorInfo], expected: Mapping[str, Any], directory: Path) -> None:
    """Refuse an adapter, and weights under the names that a wrapper around the model gave them."""
    if parts := [name for name in found if _ADAPTER.fullmatch(name)]:
        raise StartupError(
            f"{directory}: the weights hold an adapter that is not merged into its model: {some(parts, 2)}; "
            "merge it where it was trained: model.merge_and_unload().save_pretrained(DIRECTORY)"
            f", or, from the adapter's own directory: {merge_command(Path('ADAPTER'), Path('MERGED'))}"
        )
    wrappers = {wrapper for name in found for wrapper in _WRAPPER.findall(name)}
    inner = [_unwrapped(name, wrappers) for name in found]
    fronts = {
        name.removesuffix(_ANCHOR).removesuffix("transformer.") for name in inner if name.endswith(_ANCHOR)
    }
    fronts -= {""}
    if not wrappers and not fronts:
        return
    every = [*sorted(wrappers, key=len, reverse=True), *sorted(fronts)]
    full = {
        name if name in expected else f"transformer.{name}" for name in (_unwrapped(n, every) for n in found)
    }
    if set(expected) - full - {EMBEDDING}:
        return
    paths = sorted({tensor.path for tensor in found.values()})
    raise StartupError(
        f"{directory}: the tensors' names are those of a model inside a wrapper: {some(sorted(found), 2)}; "
        f"take {', '.join(map(repr, every))} out of them: {unwrap_command(paths, every)}"
    )


def _unwrapped(name: str, wrappers: Any) -> str:
    for wrapper in wrappers:
        name = name.replace(wrapper, "")
    return name
