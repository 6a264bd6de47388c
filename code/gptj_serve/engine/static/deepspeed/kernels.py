"""DeepSpeed's compiled op `transformer_inference`: looks for it, loads or builds it, and checks its use."""

import contextlib
import ctypes
import importlib.util
import logging
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gptj_serve.errors import StartupError, first_line
from gptj_serve.logs import log_event

logger = logging.getLogger(__name__)

TEMPLATED_OPS = (
    "qkv_gemm",
    "softmax_context",
    "vector_matmul",
    "fused_gemm_gelu",
    "mlp_gemm",
    "residual_add_bias",
    "allocate_workspace",
)
"""The ops that a GPT-J block binds; each exists once for each data type."""

PLAIN_OPS = ("release_workspace", "retake_workspace", "reset_cache")

SUFFIXES = {torch.float16: "fp16", torch.float32: "fp32"}


def kernels_missing() -> str | None:
    """Why DeepSpeed's kernels cannot be used on this machine; None if they can. Nothing is built or imported.

    None is no promise: the build itself may still fail, which `ensure_kernels` reports.
    """
    if not torch.cuda.is_available():
        return "no CUDA GPU is visible"
    spec = importlib.util.find_spec("deepspeed")
    if spec is None or spec.origin is None:
        return "the package deepspeed is not installed"
    folder = Path(spec.origin).parent / "ops" / "transformer" / "inference"
    if any(folder.glob("transformer_inference_op*.so")):
        return None
    missing = _missing_build_tools(_build_path())
    return f"they are not prebuilt, and {', '.join(missing)} to build them is not there" if missing else None


def _missing_build_tools(path: str) -> list[str]:
    tools = {"nvcc": _nvcc(), "ninja": "ninja", "a C++ compiler": os.environ.get("CXX", "c++")}
    return [name for name, command in tools.items() if shutil.which(command, path=path) is None]


def _nvcc() -> str:
    from torch.utils.cpp_extension import CUDA_HOME

    return os.path.join(CUDA_HOME, "bin", "nvcc") if CUDA_HOME else "nvcc"


def _build_path() -> str:
    """PATH with this interpreter's scripts, where ninja is when a virtual environment is not activated."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def ensure_kernels() -> ModuleType:
    """Load the compiled op, building it first if need be (about a minute).

    Returns:
        The extension module.

    Raises:
        StartupError: The message says in one line what is missing; details are in the log.
    """
    started_s, started_at = time.monotonic(), time.time()
    try:
        with stdout_to_stderr(), _build_environment():
            from deepspeed.ops.op_builder import InferenceBuilder

            _warn_of_lock()
            extension: ModuleType = InferenceBuilder().load(verbose=False)
    except Exception as error:
        message = "DeepSpeed's kernels could not be loaded"
        log_event(logger, "kernels_not_built", message, level=logging.ERROR, error=error)
        raise StartupError(
            f"DeepSpeed's kernels cannot be used here ({first_line(error)}); set GPTJ_ENGINE=hf"
        ) from error
    finally:
        _adopt_log()
    seconds = round(time.monotonic() - started_s, 3)
    origin = _origin(extension, started_at)
    log_event(logger, "kernels_loaded", "DeepSpeed's kernels are loaded", origin=origin, seconds=seconds)
    return extension


def _origin(extension: ModuleType, started_at: float) -> str:
    path = Path(getattr(extension, "__file__", None) or "")
    if not path.is_file():
        return "unknown"
    if "deepspeed" in path.parts:
        return "prebuilt"
    return "compiled" if path.stat().st_mtime >= started_at else "cached"


def _warn_of_lock() -> None:
    """Warn of a lock that a killed build has left: the next build waits for it silently."""
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in root.glob("**/transformer_inference/lock"):
        message = f"another process builds the kernels, or one was killed: in that case remove {lock}"
        log_event(logger, "kernels_locked", message, level=logging.WARNING)


@contextlib.contextmanager
def _build_environment() -> Iterator[None]:
    changes = {"PATH": _build_path()}
    if torch.cuda.is_available():
        changes["TORCH_CUDA_ARCH_LIST"] = arch_list(
            os.environ.get("TORCH_CUDA_ARCH_LIST"), torch.cuda.get_device_capability()
        )
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def arch_list(asked: str | None, capability: tuple[int, int]) -> str:
    """The architectures to build for: those asked for, unless DeepSpeed's builder crashes on them ("9.0a").

    Args:
        asked: ``TORCH_CUDA_ARCH_LIST`` as it is.
        capability: The compute capability of the visible GPU.
    """
    names = re.split(r"[;\s]+", (asked or "").strip())
    if all(re.fullmatch(r"\d+\.\d+(\+PTX)?", name) for name in names):
        return ";".join(names)
    return f"{capability[0]}.{capability[1]}"


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Send what DeepSpeed and its extension print to stderr, as stdout has our log, a JSON object a line."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)  # the extension prints through C's own buffer
        os.dup2(saved, 1)
        os.close(saved)


def _adopt_log() -> None:
    """Let the records of DeepSpeed's logger, which writes to stdout by itself, go through ours."""
    log = logging.getLogger("DeepSpeed")
    log.handlers.clear()
    log.propagate = True


def check_extension(extension: ModuleType, dtype: torch.dtype) -> None:
    """Refuse an extension that lacks an op: DeepSpeed would put wrong Python code in its place.

    Raises:
        StartupError: The message names the ops.
    """
    names = [*(f"{name}_{SUFFIXES[dtype]}" for name in TEMPLATED_OPS), *PLAIN_OPS]
    missing = [name for name in names if not hasattr(extension, name)]
    if missing:
        raise StartupError(f"DeepSpeed's kernels were built without {', '.join(missing)}: build them again")


def check_bound(blocks: Iterable[Any], extension: ModuleType, dtype: torch.dtype) -> None:
    """Refuse blocks that are bound to anything but the compiled ops.

    Raises:
        StartupError: The message names the ops that are not compiled.
    """
    suffix = SUFFIXES[dtype]
    fallen_back = set()
    for block in blocks:
        for name, function in _bound_ops(block).items():
            compiled = getattr(extension, name if name in PLAIN_OPS else f"{name}_{suffix}", None)
            if compiled is None or function is not compiled:
                fallen_back.add(name)
    if fallen_back:
        raise StartupError(f"DeepSpeed fell back to Python for {', '.join(sorted(fallen_back))}")


def _bound_ops(block: Any) -> dict[str, Any]:
    return {
        "qkv_gemm": block.attention.qkv_func.qkv_gemm_func,
        "softmax_context": block.attention.score_context_func.softmax_context_func,
        "vector_matmul": block.attention.vector_matmul_func.vector_matmul_func,
        "fused_gemm_gelu": block.mlp.fused_gemm_gelu.fused_gemm_gelu,
        "mlp_gemm": block.mlp.mlp_gemm_func.mlp_gemm_func,
        "residual_add_bias": block.mlp.residual_add_func.residual_add_func,
        "allocate_workspace": block.workspace.allocate_workspace_func,
        "release_workspace": block.workspace.release_workspace_func,
        "retake_workspace": block.workspace.retake_workspace_func,
        "reset_cache": block.workspace.reset_cache_func,
    }
