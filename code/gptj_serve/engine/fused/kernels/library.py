"""Finds the library of CUDA kernels, or compiles it: once for each GPU architecture, cached.

The library is plain CUDA and C, so nvcc alone compiles it, in seconds, and one build serves every
version of PyTorch and Python.
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gptj_serve.errors import StartupError
from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
PREBUILT = Path(__file__).parent / "libfused.so"
"""Where an image keeps the library for all architectures; ``scripts/build-kernels fused`` makes it.

It has no module's name: Python would take ``NAME.so`` instead of ``NAME.py``.
"""

DEFAULT_CUDA = Path("/usr/local/cuda")
"""Where CUDA is installed by default."""


def kernels_missing(env: Mapping[str, str]) -> str | None:
    """Why the kernels cannot be had on this machine; None when they can. Compiles nothing.

    Args:
        env: For ``CUDA_HOME``, ``PATH`` and ``NVCC_CCBIN``, nvcc's C++ compiler when it is not ``g++``.
    """
    if PREBUILT.is_file():
        return None
    tools = {"nvcc": find_nvcc(env), "g++": env.get("NVCC_CCBIN") or shutil.which("g++", path=_path(env))}
    missing = " and ".join(name for name, found in tools.items() if found is None)
    return f"they are not prebuilt, and {missing} to build them is not there" if missing else None


def find_library(env: Mapping[str, str], architectures: Sequence[str]) -> Path:
    """The library, prebuilt, from the cache, or compiled now.

    Args:
        env: As of `kernels_missing`, and for ``XDG_CACHE_HOME`` (the cache, default ``~/.cache``).
        architectures: What to compile for, as "9.0" or "7.5+PTX".

    Raises:
        StartupError: There is no compiler, it fails, or the library cannot be written.
    """
    started_s = time.monotonic()
    library, origin = _find_library(env, architectures)
    seconds = round(time.monotonic() - started_s, 3)
    message = f"the fused engine's kernels are {origin}"
    log_event(logger, "kernels_loaded", message, origin=origin, seconds=seconds)
    return library


def _find_library(env: Mapping[str, str], architectures: Sequence[str]) -> tuple[Path, str]:
    if PREBUILT.is_file():
        return PREBUILT, "prebuilt"
    nvcc, missing = find_nvcc(env), kernels_missing(env)
    if nvcc is None or missing:
        raise StartupError(f"the fused engine's kernels are not there: {missing}")
    library = _cache(env) / f"kernels-{_fingerprint(nvcc, architectures)}.so"
    if library.is_file():
        return library, "cached"
    compile_library(nvcc, architectures, library)
    return library, "compiled"


def compile_library(
    nvcc: str, architectures: Sequence[str], library: Path, defines: Sequence[str] = ()
) -> None:
    """Compile the library; it appears under its name whole or not at all.

    Args:
        nvcc: The compiler.
        architectures: As of `find_library`.
        library: Where to.
        defines: Macros, for tests.

    Raises:
        StartupError: The compiler fails, and its output is in the log; or the library cannot be written.
        ValueError: One of the architectures is none.
    """
    try:
        library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=library.parent) as directory:
            output = Path(directory) / "libfused.so"
            _run_nvcc([nvcc, *(f"-D{name}" for name in defines)], architectures, output)
            os.replace(output, library)
    except OSError as error:
        raise StartupError(
            f"the fused engine's kernels cannot be compiled into {library.parent}: {error}; "
            "XDG_CACHE_HOME names another place for them"
        ) from error


def _run_nvcc(nvcc: Sequence[str], architectures: Sequence[str], output: Path) -> None:
    command = [*nvcc, *_options(architectures), "-o", str(output), str(SOURCES / "fused.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"nvcc failed: {(done.stderr or done.stdout).strip()}"
        log_event(logger, "kernels_not_built", message, level=logging.ERROR)
        raise StartupError(
            f"the fused engine's kernels do not compile for {', '.join(architectures)} ({nvcc[0]}); "
            "set GPTJ_ENGINE=deepspeed or hf"
        )


def find_nvcc(env: Mapping[str, str]) -> str | None:
    """The CUDA compiler's path: below ``CUDA_HOME``, on ``PATH``, or where CUDA is installed by default."""
    home = env.get("CUDA_HOME") or env.get("CUDA_PATH")
    places = [str(Path(home) / "bin")] if home else []
    places += [_path(env), str(DEFAULT_CUDA / "bin")]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def _path(env: Mapping[str, str]) -> str:
    return env.get("PATH", os.defpath)


def _options(architectures: Sequence[str]) -> list[str]:
    options = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-cudart", "static"]
    for architecture in architectures:
        found = re.fullmatch(r"(\d+)\.(\d)(\+PTX)?", architecture)
        if found is None:
            raise ValueError(f"{architecture!r}: must be a compute capability such as 9.0 or 9.0+PTX")
        number = found[1] + found[2]
        options += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if found[3]:
            options += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return options


def _fingerprint(nvcc: str, architectures: Sequence[str]) -> str:
    """A name that changes with whatever the library is made from."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    digest.update("\0".join([version, *_options(architectures)]).encode())
    return digest.hexdigest()[:16]


def _cache(env: Mapping[str, str]) -> Path:
    cache = env.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "gptj-serve"


def main() -> None:
    """Compile the library ahead of time, into the package: what an image's build calls.

    ``KERNEL_ARCHS`` is a list as ``TORCH_CUDA_ARCH_LIST`` takes it.
    """
    nvcc = find_nvcc(os.environ)
    if nvcc is None:
        raise SystemExit("there is no nvcc")
    architectures = re.split(r"[;,\s]+", os.environ["KERNEL_ARCHS"].strip())
    try:
        compile_library(nvcc, architectures, PREBUILT)
    except (StartupError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f"{PREBUILT} for {', '.join(architectures)}: {PREBUILT.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    logging.basicConfig()  # nvcc's output is in the log
    main()
