"""The private directory: gone at exit, and what a killed service has left goes with the next start."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_serve import run_dir

HOLD = "from gptj_serve import run_dir\nwith run_dir.private() as made: print(made, flush=True); input()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(run_dir, "MAX_SOCKET_PATH_BYTES", 10_000)
    return tmp_path


def killed(folder: Path) -> Path:
    """The directory of an owner that was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("with", "run_dir.MAX_SOCKET_PATH_BYTES = 10_000\nwith", 1)],
        env={**os.environ, "TMPDIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        directory = Path(process.stdout.readline().strip())
        (directory / "engine.sock").touch()
        process.send_signal(signal.SIGKILL)
        process.wait()
    return directory


def test_it_is_private_and_gone_at_exit(folder: Path) -> None:
    with run_dir.private() as directory:
        assert directory.parent == folder
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []


def test_what_a_killed_service_left_goes_with_the_next_start(folder: Path) -> None:
    left = killed(folder)
    assert (left / "engine.sock").exists()
    with run_dir.private() as directory:
        assert list(folder.iterdir()) == [directory]


def test_what_has_an_owner_stays(folder: Path) -> None:
    with run_dir.private() as first, run_dir.private() as second:
        assert {first, second} == set(folder.iterdir())


def test_what_is_not_ours_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "gptj-of-another-program").mkdir()
    (folder / "gptj-link").symlink_to(killed(folder).rename(folder / "elsewhere"))
    before = set(folder.iterdir())
    with run_dir.private():
        assert before < set(folder.iterdir())
    (folder / "gptj-link").unlink()
    shutil.move(folder / "elsewhere", folder / "gptj-of-another-user")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with run_dir.private():
        assert (folder / "gptj-of-another-user" / "engine.sock").exists()
    monkeypatch.undo()
