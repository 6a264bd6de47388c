"""Keeps the working directory out of what our processes run.

``python -m`` looks for every module in the working directory first, before the standard library. That
directory may be a model's, and a model is data: a ``json.py`` in it must not be run. So our processes start
in ``/``, with ``PYTHONSAFEPATH`` for versions of Python that know it, and what the user has named relative to
the working directory is resolved before.
"""

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = "/"
MODEL_AS_GIVEN = "SERVE_MODEL_AS_GIVEN"
"""The model's absolute path and, on a second line, how the user wrote it, for messages."""
MODEL_OPTION = "SERVE_MODEL_OPTION"
"""The command-line option that named the model, if one did."""
PATHS = (
    "GPTJ_MODEL_DIR",
    "JAVA_HOME",
    "TMPDIR",
    "CUDA_HOME",
    "CUDA_PATH",
    "XDG_CACHE_HOME",
    "TORCH_EXTENSIONS_DIR",
)
PATH_LISTS = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")
"""An empty entry in any of them means the working directory, which nobody intends."""


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that starts in `ROOT`; it names the same files by absolute paths.

    Args:
        env: The environment in the working directory.
    """
    resolved = {**env, "PYTHONSAFEPATH": "1"}
    for name in PATHS:
        if env.get(name, "").strip():
            resolved[name] = _absolute(env[name].strip())
    given = env.get("GPTJ_MODEL_DIR", "").strip()
    if given and given != resolved["GPTJ_MODEL_DIR"]:
        resolved[MODEL_AS_GIVEN] = f"{resolved['GPTJ_MODEL_DIR']}\n{given}"
    for name in PATH_LISTS:
        if name in env:
            resolved[name] = os.pathsep.join(map(_absolute, filter(None, env[name].split(os.pathsep))))
    return resolved


def leave_working_directory() -> None:
    """Move this process, and with it everything that it starts, to `ROOT`."""
    os.environ.update(environment(os.environ))
    os.chdir(ROOT)


def model_as_given(env: Mapping[str, str]) -> str | None:
    """How the user wrote the model's path, wherever this process runs; None if nobody named one."""
    path = env.get("GPTJ_MODEL_DIR", "").strip()
    absolute, _, given = env.get(MODEL_AS_GIVEN, "").partition("\n")
    return (given if absolute == path else path) or None


def model_option(env: Mapping[str, str]) -> str:
    """What messages put before the model's path: the setting, or the option that the user has typed."""
    return f"{env[MODEL_OPTION]} " if env.get(MODEL_OPTION) else "GPTJ_MODEL_DIR="


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())
