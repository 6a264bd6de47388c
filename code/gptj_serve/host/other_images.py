"""Settings and scripts that SageMaker's other images use and this one does not.

The log names those that are there, so that nobody waits for their effect.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PROGRAM = "SAGEMAKER_PROGRAM"
OUR_PROGRAM = "inference"

_INSTEAD = {
    "SAGEMAKER_MODEL_SERVER_TIMEOUT": "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS and GPTJ_REQUEST_TIMEOUT_S",
    "SAGEMAKER_STARTUP_TIMEOUT": "the endpoint's ContainerStartupHealthCheckTimeoutInSeconds",
    "HF_MODEL_ID": "GPTJ_MODEL_DIR, a directory",
    "HF_MODEL_QUANTIZE": None,
    "HF_TASK": None,
    "SM_NUM_GPUS": "TENSOR_PARALLEL_DEGREE, which is 1",
    "MAX_TOTAL_TOKENS": "GPTJ_MAX_CONTEXT",
    "MAX_INPUT_LENGTH": "GPTJ_MAX_CONTEXT",
    "MAX_INPUT_TOKENS": "GPTJ_MAX_CONTEXT",
    "MAX_CONCURRENT_REQUESTS": "GPTJ_MAX_QUEUE",
    "MMS_DEFAULT_WORKERS_PER_MODEL": "SAGEMAKER_MODEL_SERVER_WORKERS",
    "TS_DEFAULT_WORKERS_PER_MODEL": "SAGEMAKER_MODEL_SERVER_WORKERS",
    "MMS_DEFAULT_RESPONSE_TIMEOUT": "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
    "TS_DEFAULT_RESPONSE_TIMEOUT": "SAGEMAKER_MODEL_SERVER_TIMEOUT_SECONDS",
}
"""Names that other images read, and what to use here instead."""


def what_is_not_used(env: Mapping[str, str], front: str, folders: tuple[Path, ...]) -> list[str]:
    """A sentence for each variable and script that a user may expect to have an effect.

    Args:
        env: The environment.
        front: The one that runs; one of `gptj_serve.settings.FRONTS`.
        folders: Where SageMaker's other images look for ``code/inference.py``.
    """
    sentences = [
        f"{name} is not used here" + (f"; see {instead}" if instead else "")
        for name, instead in _INSTEAD.items()
        if env.get(name, "").strip()
    ]
    program = env.get(PROGRAM, "").strip()
    if _module(program) not in ("", OUR_PROGRAM):
        if front != "mms":
            sentences.append(f"{PROGRAM}={program} is not used: the front {front} runs no scripts")
        elif not has_program(env):
            sentences.append(f"{PROGRAM}={program} is not used: there is no such module")
    scripts = {folder / "code" / "inference.py" for folder in folders}
    sentences += [f"{path} is not run: a model is data here" for path in sorted(scripts) if path.is_file()]
    return sentences


def has_program(env: Mapping[str, str]) -> bool:
    """Whether the model server's workers can import what ``SAGEMAKER_PROGRAM`` names; nothing is imported."""
    module = _module(env.get(PROGRAM, "").strip()) or OUR_PROGRAM
    places: Sequence[str] | None = [*filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path]
    for name in module.split("."):
        spec = PathFinder.find_spec(name, places)
        if spec is None:
            return False
        places = spec.submodule_search_locations or []
    return True


def _module(program: str) -> str:
    return program.removesuffix(".py")
