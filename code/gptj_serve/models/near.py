"""Says what is there where a model should be, and which command makes a model of it.

Only names are looked at, and the first bytes of a few files; nothing is loaded.
"""

import contextlib
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import check_regular, read_json, some, special_kind
from gptj_serve.models.config import CONFIG
from gptj_serve.models.remedies import GPT_J, download_command, merge_command, move_command, save_command

_HUB_NAME = re.compile(r"(?:https://huggingface\.co/)?(\w[\w.-]*/\w[\w.-]*)/?")
_MAX_LOOK_BYTES = 4 << 20
_MAX_TOLD = 3

ADAPTER = "adapter_config.json"
"""The file by which an adapter is recognised, which has no configuration of a model."""

_OF_TRAINING = re.compile(r"(optimizer|scheduler|scaler|rng_state|random_states|training_args|adapter_).*")
_STEM = r"(?P<stem>model|pytorch_model)"
_SUFFIX = r"(?P<suffix>safetensors|bin)"
_VARIANT = re.compile(rf"{_STEM}\.(?P<variant>\w+)\.{_SUFFIX}")
_VARIANT_INDEX = re.compile(rf"{_STEM}\.{_SUFFIX}\.index\.(?P<variant>\w+)\.json")
_SHARD = re.compile(rf"{_STEM}-\d+-of-\d+\.{_SUFFIX}")
_ARCHIVE = re.compile(r".*\.(tar|tar\.gz|tgz|zip)")
_MEGATRON = re.compile(r"latest_checkpointed_iteration\.txt|iter_\d+|model_optim_rng\.pt")
_DEEPSPEED = re.compile(r"zero_to_fp32\.py|global_step\d+|mp_rank_\d+_model_states\.pt|zero_pp_rank_.*")
_SHARDED_FSDP = re.compile(r".*\.distcp|pytorch_model_fsdp_\d+")
_OTHER_LIBRARY = re.compile(r"tf_model\.h5|flax_model\.msgpack|.*\.onnx|rust_model\.ot")
_GGUF = re.compile(r".*\.(gguf|ggml)", re.IGNORECASE)
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|ckpt)")


def describe_path(path: Path, given: str) -> str:
    """What is there in place of a model directory, and what to give instead.

    Args:
        path: A path that is no directory.
        given: How the user wrote it.
    """
    hub_name = _HUB_NAME.fullmatch(given)
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    if not path.exists():
        return _not_there(given, hub_name[1] if hub_name else None)
    if kind := special_kind(path.stat().st_mode):
        return f"{kind}, expected a directory"
    if _GGUF.fullmatch(path.name):
        return f"a file of llama.cpp's format, which is not served; {_the_original()}"
    if _ARCHIVE.fullmatch(path.name):
        return f"an archive, expected a directory; unpack it: {_unpack(path)}"
    if not _WEIGHTS.fullmatch(path.name):
        return "a file, expected a directory"
    if (path.parent / CONFIG).exists():
        return f"a file, expected the directory of the whole model; give {Path(given).parent}"
    return (
        f"a file of weights alone; a model is a directory with {CONFIG}, a tokenizer and the weights; "
        f"make one of it: {_move_to(path, path.parent / path.stem)}, then copy {CONFIG} and the tokenizer's "
        "files of the model it was made from there"
    )


def describe_folders(root: Path, folders: Sequence[Path]) -> str:
    """What directories hold instead of a model, a sentence each; if nothing is near a model, what they hold.

    Args:
        root: Where the user said that the model is.
        folders: That directory and those below it that were searched.
    """
    found = [sentence for folder in folders for sentence in describe_folder(folder)]
    if found:
        return "; ".join(found[:_MAX_TOLD])
    names = _names(root)
    return f"it holds {some(names)}" if names else "it is empty"


def describe_folder(folder: Path) -> list[str]:
    """What a directory holds that is near a model, the most helpful first."""
    names = _names(folder)
    lookers = (_adapter, _broken_links, _variants, _lone_shards, _checkpoints, _other_formats, _lone_weights)
    return [sentence for look in lookers for sentence in look(folder, names)]


def _not_there(given: str, hub_name: str | None) -> str:
    if given.startswith("s3://"):
        return f"no such directory; fetch it first: aws s3 cp --recursive {shlex.quote(given)} model"
    if hub_name is None and Path(given).name.lower() == GPT_J.split("/")[1]:
        return f"no such directory; fetch it first: {download_command(GPT_J, given)}"
    if hub_name is None:
        return "no such directory"
    name = hub_name.split("/")[1]
    return (
        "no such directory; if it is a model of the Hugging Face Hub, fetch it first: "
        f"{download_command(hub_name, name)}; and give {name}"
    )


def _the_original() -> str:
    return (
        "take the model that it was made from, as Transformers saves it, for instance: "
        + download_command(GPT_J, "gpt-j-6b")
    )


def _unpack(archive: Path) -> str:
    folder = archive.parent / archive.name.split(".")[0]
    target, source = shlex.quote(str(folder)), shlex.quote(str(archive))
    if archive.suffix == ".zip":
        return f"unzip {source} -d {target}"
    return f"mkdir -p {target} && tar -xf {source} -C {target}"


def _names(folder: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    return []


def _adapter(folder: Path, names: Sequence[str]) -> Iterator[str]:
    if ADAPTER not in names:
        return
    told: dict[str, object] = {}
    with contextlib.suppress(StartupError):
        told = read_json(folder / ADAPTER)
    kind, base = told.get("peft_type"), told.get("base_model_name_or_path")
    merged = folder.with_name(f"{folder.name}-merged")
    yield (
        f"{folder} is an adapter{f' ({kind})' if kind else ''}{f' of {base}' if base else ''}, not a whole "
        f"model; merge it first: {merge_command(folder, merged)}; and give {merged}"
    )


def _broken_links(folder: Path, names: Sequence[str]) -> Iterator[str]:
    broken = [name for name in names if (folder / name).is_symlink() and not (folder / name).exists()]
    if broken:
        target = os.readlink(folder / broken[0])
        yield (
            f"{folder} has links whose files are not there: {some(broken)} ({broken[0]} -> {target}); copy "
            f"the files themselves, where they are: cp -rL {shlex.quote(folder.name)} DIRECTORY (a container "
            "sees only what is mounted)"
        )


def _variants(folder: Path, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        for pattern, ending in ((_VARIANT, ""), (_VARIANT_INDEX, ".index.json")):
            if found := pattern.fullmatch(name):
                plain = f"{found['stem']}.{found['suffix']}{ending}"
                yield (
                    f"{folder / name} is the variant {found['variant']!r}; give it the name that is read: "
                    f"{move_command(folder / name, folder / plain)}"
                )
                return


def _lone_shards(folder: Path, names: Sequence[str]) -> Iterator[str]:
    shards = [name for name in names if _SHARD.fullmatch(name)]
    has_index = any(_VARIANT_INDEX.fullmatch(name) for name in names)
    if not has_index and shards and (found := _SHARD.fullmatch(shards[0])):
        index = f"{found['stem']}.{found['suffix']}.index.json"
        yield f"{folder} has shards ({some(shards, 1)}) without their {index}; copy that too"


def _checkpoints(folder: Path, names: Sequence[str]) -> Iterator[str]:
    place = shlex.quote(str(folder))
    kinds = {
        _DEEPSPEED: f"a DeepSpeed checkpoint; convert it: python3 {place}/zero_to_fp32.py {place} {place}",
        _SHARDED_FSDP: f"an FSDP checkpoint; convert it: accelerate merge-weights {place} {place}",
        _MEGATRON: "a Megatron checkpoint; convert it to Transformers' format with the converter of the "
        "library that trained it",
    }
    found = [what for pattern, what in kinds.items() if any(map(pattern.fullmatch, names))]
    yield from (f"{folder} is {what}" for what in found[:1])


def _other_formats(folder: Path, names: Sequence[str]) -> Iterator[str]:
    original = _the_original()
    for name in names:
        formats = {
            _GGUF: f"of llama.cpp's format, which is not served; {original}",
            _OTHER_LIBRARY: f"another library's, expected PyTorch's weights; {original}",
            _ARCHIVE: f"an archive; unpack it: {_unpack(folder / name)}",
        }
        for pattern, what in formats.items():
            if pattern.fullmatch(name):
                yield f"{folder / name} is {what}"
                return


def _lone_weights(folder: Path, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        is_told_already = any(one.fullmatch(name) for one in (_SHARD, _VARIANT, _OF_TRAINING))
        if _WEIGHTS.fullmatch(name) and not is_told_already and (folder / name).exists():
            yield f"{folder / name} is near it; {_what_to_do(folder / name)}"
            return


def _what_to_do(path: Path) -> str:
    if path.is_dir():
        return "a directory, expected a file"
    if path.suffix != ".safetensors" and _holds_a_model_object(path):
        saved = path.parent / "model"
        return (
            "a whole pickled model; save it as a model directory (this runs what is in the file: only if "
            f"you trust it): {save_command(path, saved)}, and the tokenizer's files beside it"
        )
    return f"if these are the model's weights, give them the name that is read: {_move_to(path, path.parent)}"


def _move_to(path: Path, directory: Path) -> str:
    name = "model.safetensors" if path.suffix == ".safetensors" else "pytorch_model.bin"
    make = "" if directory == path.parent else f"mkdir -p {shlex.quote(str(directory))} && "
    return make + move_command(path, directory / name)


def _holds_a_model_object(path: Path) -> bool:
    """Whether ``torch.save(model)`` wrote it, which names the model's class; a state dictionary does not."""
    with contextlib.suppress(OSError, StartupError):
        check_regular(path)
        with path.open("rb") as file:
            return b"GPTJForCausalLM" in file.read(_MAX_LOOK_BYTES)
    return False
