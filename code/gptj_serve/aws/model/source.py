"""Finds the model to upload: a directory of this machine, or a repository of the Hugging Face Hub."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError
from gptj_serve.errors import first_line
from gptj_serve.models.checkpoint_files import NAMES
from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import BESIDE_THE_WEIGHTS
from gptj_serve.models.near import ADAPTER
from gptj_serve.models.remedies import merge_command

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SHARDS = ("model-*.safetensors", "pytorch_model-*.bin")


@dataclass(frozen=True, slots=True)
class HubSnapshot:
    """The files of a repository at a commit.

    Attributes:
        repository: For example ``EleutherAI/gpt-j-6b``.
        revision: The revision that was asked for, for example a branch.
        commit: The commit that the revision is at the moment.
        bytes_by_name: The sizes of the files that serving needs.
    """

    repository: str
    revision: str
    commit: str
    bytes_by_name: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """The size of all files."""
        return sum(self.bytes_by_name.values())


def local_directory(source: str) -> Path | None:
    """The directory that a source names; None if it is a repository of the hub.

    Raises:
        UsageError: It is neither.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if _HUB_ID.fullmatch(source) and source[0] != ".":
        return None
    raise UsageError(
        f"{source}: no such directory, and no repository of the Hugging Face Hub (ORGANISATION/NAME)"
    )


def model_name(source: str, directory: Path | None) -> str:
    """A name for keys in S3: lower-case letters, digits and dashes."""
    name = directory.resolve().name if directory else source.rsplit("/", 1)[-1]
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "model"


def find_snapshot(repository: str, revision: str) -> HubSnapshot | None:
    """Ask the hub what a repository holds.

    Returns:
        None if the hub cannot be reached.

    Raises:
        CommandError: There is no such repository or revision, it is not open to this user, or it
            holds no GPT-J.
    """
    from huggingface_hub import HfApi

    try:
        with _explained(repository, revision):
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except _Unreachable:
        return None
    bytes_by_name = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if ADAPTER in bytes_by_name and CONFIG not in bytes_by_name:
        merged = Path(f"{model_name(repository, None)}-merged")
        raise CommandError(
            f"{repository} is an adapter, not a whole model, and adapters are not served by themselves",
            f"merge it first: {merge_command(Path(repository), merged)}; then: scripts/upload-model {merged}",
        )
    wanted = _wanted(list(bytes_by_name))
    if CONFIG not in wanted or not any(name in NAMES for name in wanted):
        raise CommandError(
            f"{repository} (revision {revision}) holds no model: {CONFIG} or the weights are missing",
            "--revision names a branch, a tag or a commit that has them",
        )
    return HubSnapshot(
        repository, revision, str(info.sha), {name: bytes_by_name[name] for name in sorted(wanted)}
    )


def download(snapshot: HubSnapshot, console: Console) -> Path:
    """Fetch a snapshot into the hub's usual cache; files that are there already are kept.

    Returns:
        The snapshot's directory.

    Raises:
        CommandError: The hub refuses, or cannot be reached any more.
        OSError: The disk is full, or the cache cannot be written.
    """
    console.progress(
        f"Fetching {snapshot.repository} ({snapshot.revision}, {snapshot.commit[:12]}), "
        f"{len(snapshot.bytes_by_name)} files; what is there already is kept"
    )
    try:
        with (
            _explained(snapshot.repository, snapshot.revision),
            console.bar(snapshot.num_bytes, "Fetching") as add,
        ):
            paths = [_fetch(snapshot, name, add) for name in snapshot.bytes_by_name]
    except _Unreachable as error:
        raise unreachable(snapshot.repository, snapshot.revision, str(error)) from None
    return paths[0].parent


def _fetch(snapshot: HubSnapshot, name: str, add: Callable[[int], None]) -> Path:
    """Fetch a file in this thread, because Ctrl-C would have to wait for the hub's own threads."""
    from huggingface_hub import hf_hub_download
    from tqdm import tqdm

    num_told = 0

    class Counter(tqdm):  # type: ignore[misc]  # tqdm has no types
        """Shows nothing, but counts the bytes that arrive."""

        def __init__(self, *arguments: Any, initial: int = 0, **named: Any) -> None:
            super().__init__(*arguments, **{**named, "disable": True})
            self.update(initial)

        def update(self, n: float | None = 1) -> None:
            nonlocal num_told
            num_told += int(n or 0)
            add(int(n or 0))

    # it is fetched by the revision's name, so that it is found again without a network
    path = hf_hub_download(snapshot.repository, name, revision=snapshot.revision, tqdm_class=Counter)
    add(snapshot.bytes_by_name[name] - num_told)  # the file was there already
    return Path(path)


def downloaded_before(repository: str, revision: str) -> Path | None:
    """The directory of a snapshot in the hub's cache; None if it is not there. The hub is not asked."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = [*BESIDE_THE_WEIGHTS, *NAMES, *_SHARDS]
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        return None


def unreachable(repository: str, revision: str, why: str = "") -> CommandError:
    """The error for a hub that cannot be reached from here."""
    name = model_name(repository, None)
    return CommandError(
        f"the Hugging Face Hub cannot be reached from here{f' ({why})' if why else ''}",
        f"download it where there is a network (`hf download {repository} --revision {revision} "
        f"--local-dir {name}`), copy the directory here, and pass it: scripts/upload-model {name}",
    )


class _Unreachable(Exception):
    """Nothing answered at the hub's address."""


def _wanted(names: Sequence[str]) -> list[str]:
    """The files that serving needs; of several formats of weights, the first that exists."""
    beside = [name for name in BESIDE_THE_WEIGHTS if name in names]
    first = next((name for name in NAMES if name in names), None)
    if first is None:
        return beside
    if not first.endswith(".index.json"):
        return [*beside, first]
    stem, suffix = first.removesuffix(".index.json").split(".")
    shards = [name for name in names if name.startswith(f"{stem}-") and name.endswith(f".{suffix}")]
    return [*beside, first, *shards]


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turn what the hub's client raises into plain words."""
    import httpx
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        raise CommandError(
            f"{repository} is gated: its owners have to let you in",
            f"ask for access on its page on the hub, then {login}",
        ) from None
    except errors.RepositoryNotFoundError:
        raise CommandError(
            f"there is no repository {repository} on the hub, or it is private", f"if it is private, {login}"
        ) from None
    except errors.RevisionNotFoundError:
        raise CommandError(
            f"{repository} has no revision {revision}", "--revision takes a branch, a tag or a commit"
        ) from None
    except (httpx.TransportError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        raise _Unreachable(first_line(error)) from None
    except errors.HfHubHTTPError as error:
        raise _http_error(repository, error, login) from None


def _http_error(repository: str, error: Any, login: str) -> CommandError:
    status = error.response.status_code
    if status in (401, 403):
        return CommandError(f"the hub refuses {repository} (HTTP {status})", login)
    return CommandError(f"the hub answered {status}: {first_line(error)}", "run this again later: it goes on")
