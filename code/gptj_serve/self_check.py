"""Checks that this installation has what ``serve`` needs, without a GPU: the last step of the image's build.

Usage: python -m gptj_serve.self_check

It checks the versions of the packages, that Java starts, and, where PyTorch has CUDA, that the prebuilt
kernels load. Exit codes: 0 everything is there, 1 something is missing, which is printed.
"""

import importlib
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from gptj_serve.errors import StartupError
from gptj_serve.serving import mms

DISTRIBUTION = "gptj-serve"
KERNELS = "deepspeed.ops.transformer.inference.transformer_inference_op"


def main() -> int:
    """Print what was found; returns the exit code."""
    problems = [*check_packages(), *check_java(), *check_kernels()]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def check_packages() -> list[str]:
    """What is wrong with the packages that this one requires."""
    problems = []
    for line in requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": "deepspeed"}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            problems.append(f"{requirement.name} is not installed")
            continue
        if requirement.specifier.contains(found, prereleases=True):
            print(f"{requirement.name} {found}")
        else:
            problems.append(f"{requirement.name} is {found}, required is {requirement.specifier}")
    return problems


def check_java() -> list[str]:
    """What is wrong with the Java runtime."""
    try:
        java = mms.find_java(os.environ)
        ran = subprocess.run(
            [str(java), "-XX:-UsePerfData", "--version"], capture_output=True, text=True, check=True
        )
    except (StartupError, OSError, subprocess.CalledProcessError) as error:
        return [f"Java does not start: {error}"]
    print(ran.stdout.splitlines()[0])
    return []


def check_kernels() -> list[str]:
    """What is wrong with the kernels; empty where PyTorch has no CUDA to run them on."""
    import torch

    if torch.version.cuda is None:
        print("PyTorch has no CUDA: there are no kernels, and the engines run on the CPU")
        return []
    return [*check_deepspeed_kernels(), *check_fused_kernels()]


def check_deepspeed_kernels() -> list[str]:
    """What is wrong with DeepSpeed's kernels."""
    try:
        importlib.import_module(KERNELS)
    except ImportError as error:
        return [f"DeepSpeed's kernels do not load: {error}"]
    print("DeepSpeed's kernels load")
    return []


def check_fused_kernels() -> list[str]:
    """What is wrong with the fused engine's kernels."""
    from gptj_serve.engine.fused.kernels import cuda as cuda_kernels
    from gptj_serve.engine.fused.kernels import library as compiler

    if not compiler.PREBUILT.is_file():
        return [f"the fused engine's kernels are not there: {compiler.PREBUILT} is missing"]
    try:
        cuda_kernels.open_library(compiler.PREBUILT)
    except (OSError, RuntimeError) as error:
        return [f"the fused engine's kernels do not load: {error}"]
    print("The fused engine's kernels load")
    return []


if __name__ == "__main__":
    sys.exit(main())
