"""Finds the tree that the image is built from, and identifies its state."""

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gptj_serve
from gptj_serve.aws.common.errors import CommandError


@dataclass(frozen=True)
class SourceTree:
    """A state of the tree.

    Attributes:
        root: The folder with the Dockerfile.
        revision: The commit, with ``-dirty`` if files differ from it; None outside of git.
        created: Time in UTC, ISO 8601. It is the commit's if nothing differs, so the same tree gives the same
            image.
    """

    root: Path
    revision: str | None
    created: str


def read_source(root: Path | None = None, env: Mapping[str, str] = os.environ) -> SourceTree:
    """Look at the tree.

    Args:
        root: The tree's folder; by default the tree that this package is part of.
        env: ``SOURCE_DATE_EPOCH``, seconds since 1970, is the time if it is set.

    Raises:
        CommandError: There is no Dockerfile: this is an installed package, not a checkout.
    """
    root = root or Path(gptj_serve.__file__).parents[2]
    if not (root / "Dockerfile").is_file():
        raise CommandError(
            f"there is no Dockerfile in {root}", "run scripts/build of a checkout of the repository"
        )
    commit, changes = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    # another repository may happen to lie around this tree
    is_ours = os.path.realpath(_git(root, "rev-parse", "--show-toplevel") or "") == os.path.realpath(root)
    if not commit or not is_ours:
        return SourceTree(root, None, _iso(env.get("SOURCE_DATE_EPOCH")))
    epoch = None if changes else _git(root, "log", "-1", "--format=%ct")
    return SourceTree(
        root, commit + ("-dirty" if changes else ""), _iso(env.get("SOURCE_DATE_EPOCH") or epoch)
    )


def _iso(epoch_s: str | None) -> str:
    try:
        moment = time.gmtime(int(epoch_s) if epoch_s else None)
    except (ValueError, OverflowError):
        raise CommandError(f"SOURCE_DATE_EPOCH={epoch_s} is not a number of seconds since 1970") from None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", moment)


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints; None if it fails or is not there."""
    try:
        ran = subprocess.run(
            ("git", "-C", str(root), *arguments), capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None
