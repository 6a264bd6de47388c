"""The fake Docker engine as tests see it."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.aws import fake_docker
from support.server import until


class InProcess:
    """Stands for `subprocess` where docker alone is started: commands in this process call it instead.

    A start takes longer than all else that these commands do.
    """

    DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT

    @staticmethod
    def run(
        argv: Sequence[str], *, env: Mapping[str, str] | None, input: str, **_: object
    ) -> "subprocess.CompletedProcess[str]":
        """What `subprocess.run` does when it captures."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = fake_docker.main(list(argv[1:]), input, env or os.environ)
        return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())

    @classmethod
    @contextmanager
    def Popen(  # noqa: N802
        cls, argv: Sequence[str], *, env: Mapping[str, str] | None, **_: object
    ) -> Iterator[SimpleNamespace]:
        """A program whose two streams are read as one."""
        ran = cls.run(argv, env=env, input="")
        yield SimpleNamespace(
            stdout=(ran.stdout + ran.stderr).splitlines(keepends=True), returncode=ran.returncode
        )


class Engine:
    """A ``docker`` that has what tests give it, for this process and, on PATH, for others; see `fake_docker`.

    Args:
        folder: Of its own, for this test alone.
        monkeypatch: Puts it on PATH.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = folder / "state"
        self.temporary = folder / "tmp"
        programs = folder / "bin"
        for one in (self.state, self.temporary, programs):
            one.mkdir(parents=True)
        (programs / "docker").write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake_docker.__file__} "$@"\n')
        (programs / "docker").chmod(0o755)
        monkeypatch.setenv("PATH", str(programs), prepend=":")
        monkeypatch.setenv("FAKE_DOCKER", str(self.state))
        monkeypatch.setenv("TMPDIR", str(self.temporary))
        monkeypatch.setattr("tempfile.tempdir", None)
        monkeypatch.setattr("gptj_serve.aws.image.docker.subprocess", InProcess)
        monkeypatch.setenv("DOCKER_CONFIG", str(folder / "users"))

    @property
    def calls(self) -> list[dict[str, Any]]:
        """What it was called with, the first call first."""
        path = self.state / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def commands(self) -> list[str]:
        """The first word of each call."""
        return [call["argv"][0] for call in self.calls]

    def add_image(self, tag: str = "gptj-serve:latest", platform: str = "linux/amd64", **labels: str) -> str:
        """Put an image there; returns its id."""
        return fake_docker.add_image(tag, {"org.opencontainers.image.version": "0.1.0", **labels}, platform)

    def wish(self, **what: str) -> None:
        """Let a command fail with these words, ``hang``, or be ``ok``; ``arch`` is the engine's processor."""
        fake_docker.write("wishes", what)

    def hanging(self) -> int:
        """Wait until a command hangs; returns its process id."""
        path = self.state / "hangs.json"
        until(lambda: path.exists() and path.read_text())
        return int(path.read_text())

    @property
    def leftovers(self) -> list[Path]:
        """Temporary files that are still there."""
        return list(self.temporary.iterdir())

    def names(self, image_id: str) -> list[str]:
        """What an image is called."""
        names: list[str] = fake_docker.read("images")[image_id]["RepoTags"]
        return names
