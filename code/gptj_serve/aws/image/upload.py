"""Pushes an image of this machine to a registry that does not have it yet."""

import base64
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import gptj_serve
from gptj_serve.aws.common.clients import Aws
from gptj_serve.aws.common.console import Console, size
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.plan import Action, Program, Step
from gptj_serve.aws.image import repository
from gptj_serve.aws.image.docker import VERSION_LABEL, Docker, Image, ImageManifest
from gptj_serve.aws.image.docker_config import private_config

AUTHORIZE = Action("ecr", "get_authorization_token", {}, "a password for docker, valid for 12 hours")


@dataclass(frozen=True)
class ImagePush:
    """An image and the place it is pushed to.

    Attributes:
        image: The image on this machine.
        given: What the user calls it; that name stays.
        place: The repository, ``HOST[:PORT]/NAME``.
        tag: The image's tag in the registry.
    """

    image: Image
    given: str
    place: str
    tag: str

    @property
    def reference(self) -> str:
        """The image's name in the registry."""
        return f"{self.place}:{self.tag}"

    @property
    def host(self) -> str:
        """The registry's name, with its port."""
        return self.place.split("/")[0]

    @property
    def login(self) -> Program:
        """The program that logs in to ECR; it reads the password from stdin."""
        argv = ("docker", "login", "--username", "AWS", "--password-stdin", self.host)
        return Program(argv, "the password on stdin, into a DOCKER_CONFIG that is removed afterwards")

    @property
    def name(self) -> Program:
        """The program that gives the image the name that it is pushed under."""
        return Program(("docker", "tag", self.image.id, self.reference))

    @property
    def push(self) -> Program:
        """The program that sends what the registry does not have."""
        return Program(
            ("docker", "push", self.reference), f"{size(self.image.num_bytes)} before it is compressed"
        )

    @property
    def unname(self) -> Program | None:
        """The program that removes the name again; None if it is the user's or the image's only name."""
        if self.given == self.reference or not set(self.image.tags) - {self.reference}:
            return None
        return Program(
            ("docker", "image", "rm", "--no-prune", self.reference), "its name on this machine alone"
        )

    @property
    def leftover(self) -> list[Program]:
        """What remains to be done after the push: to remove the name, if a killed run has left it."""
        return [self.unname] if self.unname and self.reference in self.image.tags else []

    @property
    def steps(self) -> list[Step]:
        """All programs but the login."""
        return [self.name, self.push, *([self.unname] if self.unname else [])]


def content_tag(image: Image) -> str:
    """A tag that no other content gets, of version and image id: ``0.1.0-0123456789ab``."""
    version = image.labels.get(VERSION_LABEL) or gptj_serve.__version__
    return f"{re.sub('[^A-Za-z0-9_.-]', '-', version)}-{image.id.removeprefix('sha256:')[:12]}"


def check_same(upload: ImagePush, there: ImageManifest | None) -> None:
    """Check that what the registry has under this tag, if anything, is this image.

    Raises:
        CommandError: It is another image.
    """
    if there is None or there.is_of(upload.image) or f"{upload.place}@{there.digest}" in upload.image.digests:
        return
    raise CommandError(
        f"{upload.reference} is another image ({there.digest}), not {upload.image.id}",
        "--image-tag TAG pushes it under another tag",
    )


def send(upload: ImagePush, docker: Docker) -> str:
    """Push to a registry that docker is logged in to.

    Returns:
        The image's digest.

    Raises:
        CommandError: The push failed, or no digest is known afterwards.
    """
    with _named(upload, docker):
        docker.run(upload.push)
        pushed = docker.find_manifest(upload.reference)
        if pushed:
            return pushed.digest
        # the registry speaks plain HTTP only, or this is an index: the engine has noted the digest
        image = docker.find_image(upload.reference)
        digests = [
            digest
            for place, _, digest in (one.partition("@") for one in (image.digests if image else ()))
            if place == upload.place
        ]
        if len(digests) != 1:
            raise CommandError(f"{upload.reference} was pushed, but the registry does not tell its digest")
        return digests[0]


def send_to_ecr(upload: ImagePush, aws: Aws, name: str, console: Console) -> ImageManifest:
    """Log in and push.

    Args:
        upload: The image and the place it is pushed to.
        aws: The registry's account.
        name: The repository's name.
        console: Where progress goes.

    Raises:
        CommandError: The push failed.
        ClientError: AWS refused a call.
    """
    answer = AUTHORIZE.apply(aws)["authorizationData"][0]
    password = base64.b64decode(answer["authorizationToken"]).decode().partition(":")[2]
    with private_config(upload.host) as config:
        docker = Docker(console, config)
        docker.run(upload.login, stdin=password, quiet=True)
        with _named(upload, docker):
            try:
                docker.run(upload.push)
            except CommandError:
                # somebody else pushed the same image meanwhile, and a tag cannot be written twice
                if repository.find_pushed(aws, name, upload.tag) is None:
                    raise
    pushed = repository.find_pushed(aws, name, upload.tag)
    check_same(upload, pushed)
    if pushed is None:
        raise CommandError(f"{upload.reference} was pushed, but is not there", "run it again")
    return pushed


@contextlib.contextmanager
def _named(upload: ImagePush, docker: Docker) -> Iterator[None]:
    docker.run(upload.name, quiet=True)
    try:
        yield
    finally:
        if upload.unname:
            _unname(upload.unname, docker)


def tidy(upload: ImagePush, docker: Docker) -> None:
    """Do what a run that was killed after its push left undone."""
    for program in upload.leftover:
        _unname(program, docker)


def _unname(program: Program, docker: Docker) -> None:
    with contextlib.suppress(CommandError):  # a name that is left does no harm
        docker.run(program, quiet=True)
