"""``scripts/push``: pushes the image to a registry if it is not there, and prints its address with digest."""

import argparse
import re
import sys
from collections.abc import Sequence

from gptj_serve.aws.common import tags
from gptj_serve.aws.common.clients import Aws, connect
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, UsageError
from gptj_serve.aws.common.plan import Step, show
from gptj_serve.aws.image import repository
from gptj_serve.aws.image.docker import PLATFORM, Docker, Image, ImageManifest
from gptj_serve.aws.image.docker_config import remove_leftovers
from gptj_serve.aws.image.upload import AUTHORIZE, ImagePush, check_same, content_tag, send, send_to_ecr, tidy

EXAMPLES = """
scripts/push                                        the image gptj-serve, to Amazon ECR
scripts/push --dry-run                              what that would do
IMAGE=$(scripts/push --profile prod --region eu-west-1)
scripts/push my-image:1 --repository team/gpt-j --tag team=search
scripts/push --registry 127.0.0.1:5000/gptj-serve   to any registry, with docker's own login
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _push, argv)


def _parser() -> argparse.ArgumentParser:
    what = "Push the image, unless it is there already, and print its address with digest."
    parser = make_parser("push", what, EXAMPLES)
    parser.add_argument(
        "image", nargs="?", default="gptj-serve", help="image on this machine (default: %(default)s)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--repository",
        default=repository.DEFAULT_NAME,
        type=_repository_name,
        metavar="NAME",
        help="in Amazon ECR, made if it is missing (default: %(default)s)",
    )
    where.add_argument(
        "--registry", type=_place, metavar="HOST[:PORT]/NAME", help="another registry than Amazon ECR"
    )
    parser.add_argument(
        "--image-tag",
        type=_image_tag,
        metavar="TAG",
        help="tag in the registry (default: VERSION-ID, the image's version and 12 digits of its id)",
    )
    tags.add_option(parser)
    return parser


def _push(arguments: argparse.Namespace, console: Console) -> None:
    if arguments.registry and arguments.tag:
        raise UsageError("--tag: repositories outside Amazon ECR have no tags; --image-tag is the image's")
    if not arguments.dry_run:
        remove_leftovers()
    docker = Docker(console)
    docker.check()
    image = docker.find_image(arguments.image)
    if image is None:
        raise CommandError(f"there is no image {arguments.image} on this machine", "scripts/build makes it")
    tag = arguments.image_tag or content_tag(image)
    if arguments.registry:
        upload = ImagePush(image, arguments.image, arguments.registry, tag)
        _to_registry(upload, docker, arguments.dry_run, console)
    else:
        _check_platform(image)
        aws = connect(arguments.region, arguments.profile)
        _to_ecr(aws, image, tag, arguments, console)


def _to_registry(upload: ImagePush, docker: Docker, dry_run: bool, console: Console) -> None:
    there = docker.find_manifest(upload.reference)
    check_same(upload, there)
    if dry_run:
        _show_plan(upload.leftover if there else upload.steps, console)
        return
    if there is None:
        console.progress(f"Pushing to {upload.reference}")
        digest = send(upload, docker)
    else:
        digest = there.digest
        tidy(upload, docker)
    _show_result(upload, digest, there is None, console)


def _to_ecr(aws: Aws, image: Image, tag: str, arguments: argparse.Namespace, console: Console) -> None:
    name, given = arguments.repository, arguments.image
    found = repository.find_repository(aws, name)
    changes = repository.plan_repository(name, found, tags.to_dict(arguments.tag))
    uri = found.uri if found else repository.expected_uri(aws, name)
    upload = ImagePush(image, given, uri, tag)
    there = repository.find_pushed(aws, name, tag) if found else None
    check_same(upload, there)
    if found and not found.is_ours and arguments.tag:
        console.progress(f"note: scripts/push did not make the repository {name}: it gets no --tag")
    if arguments.dry_run:
        sending = [AUTHORIZE, upload.login, *upload.steps, repository.look_up(name, tag)]
        _show_plan([*changes, *(upload.leftover if there else sending)], console)
        return
    if found and not found.is_immutable:
        console.progress(f"note: the tags of the repository {name} are mutable; deploy by digest")
    for change in changes:
        console.progress(f"Repository {name}: {change.note}")
        answer = change.apply(aws)
        uri = answer.get("repository", {}).get("repositoryUri", uri)
    upload = ImagePush(image, given, uri, tag)
    if there is None:
        console.progress(f"Pushing to {upload.reference}")
        pushed = send_to_ecr(upload, aws, name, console)
    else:
        pushed = there
        tidy(upload, Docker(console))
    _check_media_type(pushed, console)
    _show_result(upload, pushed.digest, there is None, console)


def _check_media_type(pushed: ImageManifest, console: Console) -> None:
    if pushed.media_type != repository.MEDIA_TYPES[0]:
        console.progress(
            f"warning: the image's manifest is of type {pushed.media_type}, which SageMaker "
            "refuses, and scripts/deploy with it; scripts/build makes images without"
        )


def _check_platform(image: Image) -> None:
    if image.platform != PLATFORM:
        raise CommandError(
            f"the image is for {image.platform}; SageMaker's GPU instances are {PLATFORM}",
            "scripts/build builds for that on any machine",
        )


def _show_plan(steps: Sequence[Step], console: Console) -> None:
    console.result({"plan": [step.to_dict() for step in steps]}, show(steps))


def _show_result(upload: ImagePush, digest: str, pushed: bool, console: Console) -> None:
    if not pushed:
        console.progress(f"{upload.reference} is there already")
    uri = f"{upload.place}@{digest}"
    fields = {
        "image_uri": uri,
        "repository": upload.place,
        "tag": upload.tag,
        "digest": digest,
        "pushed": pushed,
    }
    console.result(fields, uri)


def _repository_name(text: str) -> str:
    name = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
    if not 2 <= len(text) <= 256 or not re.fullmatch(rf"{name}(?:/{name})*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: 2 to 256 characters, lower-case letters, digits and single . _ - / between them"
        )
    return text


def _place(text: str) -> str:
    host = r"(?:[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|localhost|[A-Za-z0-9-]+(?=:))(?::\d+)?"
    if not re.fullmatch(rf"{host}(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST[:PORT]/NAME, for example 127.0.0.1:5000/gptj-serve (no tag: --image-tag)"
        )
    return text


def _image_tag(text: str) -> str:
    if text == "latest" or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r}: 1 to 128 letters, digits and . _ - (not first), and not 'latest', which stays nowhere"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
