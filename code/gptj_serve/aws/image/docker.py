"""Runs the docker command line: looks at images, and runs programs that show their progress."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import NOTICE, CommandError, redact
from gptj_serve.aws.common.plan import Program

PLATFORM = "linux/amd64"
"""The platform that the image is for."""
VERSION_LABEL = "org.opencontainers.image.version"


@dataclass(frozen=True)
class Image:
    """An image on this machine.

    Attributes:
        id: ``sha256:…``, a digest of its content; of which document depends on the engine's store.
        tags: The names that it has here, with their tags.
        digests: ``NAME@sha256:…`` for each registry that it was pushed to or pulled from.
        num_bytes: Size of its unpacked layers.
        platform: For example ``linux/amd64``.
        labels: The image's labels.
        media_type: Media type of its manifest, where the engine's store has one.
    """

    id: str
    tags: tuple[str, ...]
    digests: tuple[str, ...]
    num_bytes: int
    platform: str
    labels: Mapping[str, str]
    media_type: str | None

    @staticmethod
    def parse(inspected: Mapping[str, Any]) -> "Image":
        """Read what ``docker image inspect`` prints."""
        return Image(
            id=inspected["Id"],
            tags=tuple(inspected.get("RepoTags") or ()),
            digests=tuple(inspected.get("RepoDigests") or ()),
            num_bytes=inspected["Size"],
            platform=f"{inspected['Os']}/{inspected['Architecture']}",
            labels=(inspected.get("Config") or {}).get("Labels") or {},
            media_type=(inspected.get("Descriptor") or {}).get("mediaType"),
        )


@dataclass(frozen=True)
class ImageManifest:
    """An image in a registry.

    Attributes:
        digest: The digest that it is addressed by.
        config_digest: The digest of its configuration; None for an index of several images.
        media_type: The manifest's media type.
    """

    digest: str
    config_digest: str | None
    media_type: str

    def is_of(self, image: Image) -> bool:
        """Whether it is the same image, which an engine's store knows by one of the two digests."""
        return image.id in (self.digest, self.config_digest)


class Docker:
    """Runs the docker command.

    Args:
        console: Where progress goes.
        config: Folder of docker's configuration; None for the user's own.
    """

    def __init__(self, console: Console, config: Path | None = None) -> None:
        self._console = console
        self._env = {**os.environ, "DOCKER_CONFIG": str(config)} if config else None

    def check(self) -> str:
        """Check that an engine answers.

        Returns:
            The engine's processor, for example ``amd64``.

        Raises:
            CommandError: docker is not installed, or no engine answers.
        """
        if shutil.which("docker") is None:
            raise CommandError(
                "the docker command is not there", "install Docker: https://docs.docker.com/engine/install/"
            )
        ran = self._capture("version", "--format", "{{.Server.Arch}}")
        if ran.returncode != 0:
            hint = "start Docker; on Linux you also have to be in the group docker, or root"
            raise CommandError(f"the Docker engine does not answer: {_last_line(ran.stderr)}", hint)
        return ran.stdout.strip()

    def has_buildx(self) -> bool:
        """Whether BuildKit's command is there."""
        return self._capture("buildx", "version").returncode == 0

    def find_image(self, name: str) -> Image | None:
        """An image of this machine by name or id; None if there is none."""
        ran = self._capture("image", "inspect", name)
        if ran.returncode == 0:
            return Image.parse(json.loads(ran.stdout)[0])
        if "no such image" in ran.stderr.lower():
            return None
        raise _failed(("docker", "image", "inspect", name), ran.returncode, _last_line(ran.stderr))

    def find_manifest(self, reference: str) -> ImageManifest | None:
        """An image in a registry; None if there is none, or the registry does not tell."""
        on_loopback = reference.startswith(("127.", "localhost:", "localhost/"))
        insecure = ["--insecure"] if on_loopback else []  # the engine does the same
        ran = self._capture("manifest", "inspect", "--verbose", *insecure, reference)
        if ran.returncode != 0:
            return None
        found = json.loads(ran.stdout)
        if isinstance(found, list):  # it is an index, whose own digest the command does not tell
            return None
        descriptor = found["Descriptor"]
        inner = found.get("SchemaV2Manifest") or found.get("OCIManifest") or {}
        config = (inner.get("config") or {}).get("digest")
        return ImageManifest(descriptor["digest"], config, descriptor["mediaType"])

    def run(self, program: Program, *, stdin: str | None = None, quiet: bool = False) -> None:
        """Run a program, and show what it prints as progress.

        Args:
            program: The program; its arguments are visible to all users of the machine.
            stdin: What the program reads.
            quiet: Show nothing.

        Raises:
            CommandError: The program failed; the message has what it printed last.
        """
        if quiet:
            ran = self._start(program, stdin)
            code, said = ran.returncode, _last_line(ran.stderr)
        else:
            code, said = self._run_visibly(program)
        if code != 0:
            raise _failed(program.argv, code, said)

    def _capture(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self._start(Program(("docker", *arguments)), None)

    def _start(self, program: Program, stdin: str | None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            program.argv, env=self._env, input=stdin or "", capture_output=True, text=True, check=False
        )

    def _run_visibly(self, program: Program) -> tuple[int, str]:
        """Let docker draw its own bars on a terminal; elsewhere, pass its lines on."""
        if self._console.is_terminal:
            ran = subprocess.run(
                program.argv, env=self._env, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False
            )
            return ran.returncode, "what it said is above"
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        said = ""
        with subprocess.Popen(program.argv, env=self._env, stdin=subprocess.DEVNULL, **pipes) as process:
            try:
                for line in process.stdout or ():
                    said = line.strip() or said
                    if not line.rstrip().endswith((": Preparing", ": Waiting")):
                        self._console.progress(line.rstrip())
            except BaseException:
                process.terminate()
                raise
        return process.returncode, said


def _failed(argv: tuple[str, ...], code: int, said: str) -> CommandError:
    hint = NOTICE if "not authorized to perform" in said else None
    if "no basic auth credentials" in said or "unauthorized" in said:
        hint = "log in to the registry first: docker login"
    return CommandError(f"`{' '.join(argv[:2])}` failed with exit code {code}: {said}", hint)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return redact(lines[-1]) if lines else "it said nothing"
