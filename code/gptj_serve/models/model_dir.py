"""Finds the model and checks what it is and whether it is whole, before anything is loaded.

A wrong model is a `StartupError` within a second, not a failure minutes into the start. No torch is imported.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptj_serve.errors import StartupError
from gptj_serve.host.regular_files import read_json, some, special_kind, unreadable
from gptj_serve.models import checkpoint_files
from gptj_serve.models.architecture import Architecture
from gptj_serve.models.checkpoint_files import CheckpointFiles
from gptj_serve.models.config import CONFIG
from gptj_serve.models.families import config_notes, read_architecture, shapes_of
from gptj_serve.models.generation_config import GenerationDefaults, read_defaults
from gptj_serve.models.match import check_tensors, ignored
from gptj_serve.models.near import describe_folder, describe_folders, describe_path
from gptj_serve.settings import DEFAULT_MODEL_DIR

BESIDE_THE_WEIGHTS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
)
"""Everything that serving reads of a model directory besides its weights."""

MAX_FOLDERS = 2000
"""How many folders are searched at most, in case somebody has named the whole disk."""

MAX_DEPTH = 4
"""How deep sub-folders are searched; a tarball nests one or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model directory that was found whole.

    Attributes:
        architecture: What the model is.
        directory: Where config.json is.
        generation: What it says about how to generate.
        files: The weight files.
        num_weights: How many numbers all tensors have, with a head that is stored though it is tied.
        unmapped_bytes: Size of the files that can only be read into memory as a whole.
        notes: What is unusual but cannot change its answers, a sentence each for a warning.
    """

    architecture: Architecture
    directory: Path
    generation: GenerationDefaults
    files: CheckpointFiles
    num_weights: int
    unmapped_bytes: int
    notes: tuple[str, ...]


def find_checkpoint(root: Path, given: str | None = None, option: str = "GPTJ_MODEL_DIR=") -> Checkpoint:
    """Find the one model under a directory and check it without loading it.

    Args:
        root: The directory to search, itself included.
        given: How the user wrote it; None is as it is.
        option: What messages put before that.

    Raises:
        StartupError: There is no model, there are several, it has another architecture, or weights are
            missing, left over, of other shapes, truncated, corrupt or unsafe; the message says what is right.
    """
    directory = find_directory(root, given, option)
    raw = read_json(directory / CONFIG)
    architecture = read_architecture(raw, directory / CONFIG)
    try:
        files = checkpoint_files.find_files(directory)
    except OSError as error:
        raise unreadable(Path(error.filename or directory), error) from error
    if files is None:
        raise _no_weights(directory)
    expected = shapes_of(architecture)
    contents = checkpoint_files.read_contents(files)
    tensors = check_tensors(contents.tensors, expected, directory)
    generation = read_defaults(directory, raw, architecture.vocab_size)
    notes = [*config_notes(raw, directory / CONFIG), *contents.notes, *generation.notes]
    if (adapter := directory / "adapter_config.json").exists():
        notes.append(f"{adapter}: the adapter beside the whole model is not applied")
    if names := ignored(contents.tensors, expected):
        notes.append(
            f"{directory}: the weights hold tensors that are not GPT-J's and are ignored: {some(names)}"
        )
    return Checkpoint(
        architecture=architecture,
        directory=directory,
        generation=generation,
        files=files,
        num_weights=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        unmapped_bytes=checkpoint_files.unmapped_bytes(files),
        notes=tuple(notes),
    )


def mount_hint(root: Path) -> str:
    """What to do about a missing model where containers expect one, as nobody has set that path."""
    return f"; mount it there (docker run -v MODEL:{root}:ro)" if root == DEFAULT_MODEL_DIR else ""


def find_directory(root: Path, given: str | None = None, option: str = "GPTJ_MODEL_DIR=") -> Path:
    """The one directory under ``root`` (itself included) that holds a model, by the names of its files.

    A directory that holds a model is not searched further: training leaves older checkpoints there.

    Args:
        root: Where to search.
        given: How the user wrote it; None is as it is.
        option: What messages put before that.

    Raises:
        StartupError: There is none (the message says what is there), there are several, or files are pipes.
    """
    said = f"{option}{given or root}"
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            root.stat()  # a path that may not be looked at is not taken for one that does not exist
        if not root.is_dir():
            raise StartupError(f"{said}: {describe_path(root, given or str(root))}{mount_hint(root)}")
        folders = list(_searched(root))
        candidates = _candidates(folders)
    except OSError as error:
        raise unreadable(Path(error.filename or root), error) from error
    if not candidates:
        raise StartupError(
            f"{said}: no model there, nor in its sub-folders ({MAX_DEPTH} levels): "
            f"{describe_folders(root, folders)}; expected a directory with {CONFIG} and one of "
            f"{', '.join(checkpoint_files.NAMES)}{mount_hint(root)}"
        )
    if len(candidates) > 1 and not _is_whole(candidates[0]):
        parts = [f"{part} ({CONFIG if _has_config(part) else 'weights'} alone)" for part in candidates]
        raise StartupError(
            f"{said}: parts of a model, but none whole: {some(parts)}; put {CONFIG}, the tokenizer's files "
            "and the weights into one directory"
        )
    if len(candidates) > 1:
        listed = some([str(directory) for directory in candidates])
        raise StartupError(f"{said}: several models; point it at one of: {listed}")
    _refuse_special_files(candidates[0])
    _refuse_unreadable_files(candidates[0])
    return candidates[0]


def _candidates(folders: Sequence[Path]) -> list[Path]:
    """The folders that hold a model, or else those that hold a part of one."""
    whole = [folder for folder in folders if _is_whole(folder)]
    part = [folder for folder in folders if _has_config(folder) or _has_weights(folder)]
    # several links may lead to the same directory
    by_place = {directory.resolve(): directory for directory in reversed(whole or part)}
    return list(reversed(by_place.values()))


def _searched(root: Path) -> Iterator[Path]:
    """The root and the folders below it, the nearest first."""
    level, num_folders = [root], 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            num_folders += 1
            if num_folders > MAX_FOLDERS:
                raise StartupError(f"{root}: more than {MAX_FOLDERS} folders; name the model's own")
            yield folder
            if not _is_whole(folder):
                below.extend(_sub_folders(folder))
        level = below


def _is_whole(folder: Path) -> bool:
    return _has_config(folder) and _has_weights(folder)


def _has_config(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in checkpoint_files.NAMES)


def _refuse_special_files(directory: Path) -> None:
    """Refuse pipes and devices: opening a pipe waits for its writer, and a device may have no end."""
    names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    for path in map(directory.joinpath, names):
        try:
            kind = special_kind(path.stat().st_mode)
        except OSError:  # this is a link without a target; the code that needs the file says so
            continue
        if kind is not None:
            raise StartupError(f"{path}: is {kind}, expected a regular file; remove or replace it")


def _refuse_unreadable_files(directory: Path) -> None:
    """Refuse files that cannot be read: a container often runs as another user than the training did."""
    for path in (directory / name for name in BESIDE_THE_WEIGHTS):
        try:
            if path.is_file():
                path.open("rb").close()
        except OSError as error:
            raise unreadable(path, error) from error


def _no_weights(directory: Path) -> StartupError:
    found = "".join(f"; {sentence}" for sentence in describe_folder(directory))
    return StartupError(
        f"{directory}: no weights; expected one of {', '.join(checkpoint_files.NAMES)}{found}"
    )


def _sub_folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir()]
    # `code` holds a customer's scripts, never a model; __MACOSX is what macOS adds to archives
    return [folder / name for name in sorted(names) if name[0] != "." and name not in ("__MACOSX", "code")]
