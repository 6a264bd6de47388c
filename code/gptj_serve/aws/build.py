"""``scripts/build``: builds the image of this tree with this machine's Docker engine."""

import argparse
import os
import platform
import re
import sys
from collections.abc import Sequence

import gptj_serve
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console, size
from gptj_serve.aws.common.errors import CommandError
from gptj_serve.aws.common.plan import Program, show
from gptj_serve.aws.image.docker import PLATFORM, Docker
from gptj_serve.aws.image.source_tree import SourceTree, read_source
from gptj_serve.aws.machines.instances import find_instance, why_not

EXAMPLES = """
scripts/build                                    for every GPU from the V100 to the H100
scripts/build --instance-type ml.g5.2xlarge      kernels for its GPU alone: faster to build
scripts/build --archs '8.9;9.0+PTX' --tag gptj-serve:l4
scripts/build --base-image my/pytorch:2.12 -- --no-cache
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _build, argv)


def _parser() -> argparse.ArgumentParser:
    what = "Build the image (needs a network and 30 GB of disk, no GPU) and print its id."
    parser = make_parser("build", what, EXAMPLES, aws=False)
    parser.add_argument(
        "--tag", default="gptj-serve", metavar="NAME[:TAG]", help="its name here (default: %(default)s)"
    )
    kernels = parser.add_mutually_exclusive_group()
    kernels.add_argument(
        "--archs",
        type=_archs,
        metavar="LIST",
        help="compute capabilities to compile kernels for, as TORCH_CUDA_ARCH_LIST has them",
    )
    kernels.add_argument(
        "--instance-type",
        action="append",
        default=[],
        type=_capability,
        metavar="TYPE",
        help="kernels for this SageMaker instance type's GPU alone; may be repeated",
    )
    for stage, where in (("base", "both stages"), ("build", "compiling"), ("runtime", "running")):
        parser.add_argument(f"--{stage}-image", metavar="IMAGE", help=f"image with PyTorch for {where}")
    parser.add_argument("options", nargs="*", metavar="-- OPTION", help="options of docker build")
    return parser


def _build(arguments: argparse.Namespace, console: Console) -> None:
    source = read_source()
    docker = Docker(console)
    arch, has_buildx = _engine(docker, console, arguments.dry_run)
    program = plan_build(arguments, source, has_buildx=has_buildx, is_foreign=arch != PLATFORM.split("/")[1])
    if arguments.dry_run:
        console.result({"plan": [program.to_dict()]}, show([program]))
        return
    docker.run(program)
    image = docker.find_image(arguments.tag)
    if image is None:
        raise CommandError(f"docker built, but there is no image {arguments.tag}")
    console.progress(f"{arguments.tag}: {size(image.num_bytes)}. Next: scripts/push {arguments.tag}")
    fields = {
        "image": arguments.tag,
        "image_id": image.id,
        "bytes": image.num_bytes,
        "version": gptj_serve.__version__,
        "revision": source.revision,
        "created": source.created,
    }
    console.result(fields, image.id)


def _engine(docker: Docker, console: Console, dry_run: bool) -> tuple[str, bool]:
    """The engine's processor, and whether BuildKit is there; a dry run needs no engine."""
    wants_buildx = os.environ.get("DOCKER_BUILDKIT") != "0"
    try:
        return docker.check(), wants_buildx and docker.has_buildx()
    except CommandError as error:
        if not dry_run:
            raise
        console.progress(f"note: {error.message}: the plan is for this processor and a docker with buildx")
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine).lower(), wants_buildx


def plan_build(
    arguments: argparse.Namespace, source: SourceTree, *, has_buildx: bool, is_foreign: bool
) -> Program:
    """The call of docker that builds the image.

    Args:
        arguments: The parsed command line.
        source: The tree that is built.
        has_buildx: Whether BuildKit's command is there, or only the builder that came before it.
        is_foreign: Whether the image is for another processor than the engine's.
    """
    archs = arguments.archs or ";".join(sorted(set(arguments.instance_type)))
    settings = {
        "BASE_IMAGE": arguments.base_image,
        "BUILD_IMAGE": arguments.build_image,
        "RUNTIME_IMAGE": arguments.runtime_image,
        "KERNEL_ARCHS": archs,
        "VERSION": gptj_serve.__version__,
        "REVISION": source.revision,
        "CREATED": source.created,
    }
    # SageMaker takes neither OCI's media types nor an index, which attestations would turn the image into
    builder = ["buildx", "build", "--provenance=false", "--output=type=docker"] if has_buildx else ["build"]
    platform = [f"--platform={PLATFORM}"] if is_foreign else []
    given = [f"--build-arg={key}={value}" for key, value in settings.items() if value]
    argv = ["docker", *builder, *platform, f"--tag={arguments.tag}", *given, *arguments.options]
    return Program((*argv, str(source.root)), f"the image of {source.revision or 'a tree without git'}")


def _archs(text: str) -> str:
    archs = [one for one in re.split(r"[;,\s]+", text) if one]
    if not archs or not all(re.fullmatch(r"\d{1,2}\.\d(\+PTX)?", one) for one in archs):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list such as '7.5;8.6;9.0+PTX'")
    return ";".join(archs)


def _capability(name: str) -> str:
    instance = find_instance(name)
    if instance is None:
        raise argparse.ArgumentTypeError(why_not(name))
    if instance.gpu is None:
        raise argparse.ArgumentTypeError(f"{name} has no GPU, so there are no kernels to choose")
    return instance.gpu.capability


if __name__ == "__main__":
    sys.exit(main())
