"""Turns what the user named into a model directory to upload: fetches, checks, and converts if needed."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gptj_serve.aws.common.console import Console, size
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.model import source
from gptj_serve.aws.model.files import SINGLE
from gptj_serve.errors import StartupError
from gptj_serve.models import remedies
from gptj_serve.models.checkpoint_files import SAFETENSORS, read_safetensors
from gptj_serve.models.model_dir import Checkpoint, find_checkpoint
from gptj_serve.serving.text import Tokenizer


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model and how it should be.

    Attributes:
        source: A directory, or a repository of the hub.
        revision: The repository's revision; None for its usual one.
        keep_dtype: Whether weights keep their type.
        shard_bytes: The largest size of converted files.
        work_dir: Where converted files go.
    """

    source: str
    revision: str | None
    keep_dtype: bool
    shard_bytes: int
    work_dir: Path


@dataclass(frozen=True, slots=True)
class Unprepared:
    """What a dry run leaves undone, after which nothing more can be said.

    Attributes:
        steps: What would be done, a sentence each.
    """

    steps: tuple[str, ...]


def prepare(wanted: ModelSpec, name: str, console: Console, dry_run: bool) -> Checkpoint | Unprepared:
    """Fetch, check and convert a model.

    Args:
        wanted: The model.
        name: Part of the name of the directory of converted files.
        console: Where progress is shown.
        dry_run: Fetch and convert nothing.

    Returns:
        A whole model in safetensors.

    Raises:
        CommandError: There is no model, it is broken, it is no GPT-J, or it cannot be fetched or converted.
        OSError: Something cannot be read or written.
    """
    try:
        local = source.local_directory(wanted.source)
        found = local or _from_hub(wanted, console, dry_run)
        if isinstance(found, Unprepared):
            return found
        checkpoint = find_checkpoint(found, wanted.source if local else None, option="")
        for note in checkpoint.notes:
            console.progress(note)
        Tokenizer.load(checkpoint.directory)
        why = needs_conversion(checkpoint, wanted.keep_dtype, wanted.shard_bytes)
        return checkpoint if why is None else _converted(checkpoint, why, wanted, name, console, dry_run)
    except StartupError as error:  # this is what serving says of a model that it would not start with
        raise CommandError(str(error)) from error


def needs_conversion(checkpoint: Checkpoint, keep_dtype: bool, shard_bytes: int) -> str | None:
    """Why a checkpoint cannot go up as it is; None if it can.

    Args:
        checkpoint: The checkpoint.
        keep_dtype: Whether weights that are not float16 keep their type.
        shard_bytes: A single file that is larger is split.
    """
    if checkpoint.files.format != SAFETENSORS:
        return "the weights are a pickle"
    tensors = read_safetensors(checkpoint.files).tensors.values()
    others = sorted({tensor.dtype for tensor in tensors if tensor.is_float} - {"F16"})
    if others and not keep_dtype:
        return f"the weights are {', '.join(others)}"
    num_bytes = checkpoint.files.paths[0].stat().st_size
    if [path.name for path in checkpoint.files.paths] == [SINGLE] and num_bytes > shard_bytes:
        return f"the weights are one file of {size(num_bytes)}"
    return None


def _from_hub(wanted: ModelSpec, console: Console, dry_run: bool) -> Path | Unprepared:
    revision = wanted.revision or remedies.default_revision(wanted.source)
    snapshot = source.find_snapshot(wanted.source, revision)
    if snapshot is None:
        found = source.downloaded_before(wanted.source, revision)
        if found is None:
            raise source.unreachable(wanted.source, revision)
        console.progress(f"The hub cannot be reached; using what was fetched before: {found}")
        return found
    if not dry_run:
        return source.download(snapshot, console)
    if found := source.downloaded_before(wanted.source, snapshot.commit):
        return found
    files = ", ".join(f"{name} ({size(num)})" for name, num in snapshot.bytes_by_name.items())
    fetch = f"fetch {wanted.source} at {revision} ({snapshot.commit}), {size(snapshot.num_bytes)}: {files}"
    return Unprepared((fetch, "check it, and convert it to float16 in safetensors if it is not"))


def _converted(
    checkpoint: Checkpoint, why: str, wanted: ModelSpec, name: str, console: Console, dry_run: bool
) -> Checkpoint | Unprepared:
    # this imports PyTorch, which is not needed for an upload alone
    from gptj_serve.aws.model import conversion

    directory = wanted.work_dir / f"{name}-{_identity(checkpoint, wanted)}"
    keep, shard_bytes = wanted.keep_dtype, wanted.shard_bytes
    if dry_run:
        with contextlib.suppress(StartupError):
            return find_checkpoint(directory)
        with conversion.open_conversion(checkpoint, keep, shard_bytes) as (_, shards):
            total = sum(tensor.num_bytes for tensors in shards.values() for tensor in tensors)
        return Unprepared((f"write {len(shards)} files, {size(total)}, to {directory}: {why}",))
    console.progress(f"Converting to safetensors, since {why}; the files stay in {directory}")
    bar: Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]
    bar = functools.partial(console.bar, what="Converting")
    return conversion.convert(checkpoint, directory, bar, keep_dtype=keep, shard_bytes=shard_bytes)


def _identity(checkpoint: Checkpoint, wanted: ModelSpec) -> str:
    """A string that differs wherever the converted files would."""
    files = sorted(path for path in checkpoint.directory.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = [str(checkpoint.directory.resolve()), facts, wanted.keep_dtype, wanted.shard_bytes]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
