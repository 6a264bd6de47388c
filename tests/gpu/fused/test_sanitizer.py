"""compute-sanitizer finds nothing in the fused engine's kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

PROGRAM = Path(__file__).with_name("sanitized.py")
SHARED = PROGRAM.parents[2]


@pytest.mark.parametrize(
    ("tool", "options", "verdict"),
    [
        ("memcheck", [], "0 errors"),
        # cuBLAS's kernels for an H100 end racecheck itself ("failed to handle a hardware exception")
        ("racecheck", ["--without-cublas"], "0 hazards"),
    ],
)
def test_clean(tool: str, options: list[str], verdict: str) -> None:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if sanitizer is None:
        pytest.skip("there is no compute-sanitizer")
    # PyTorch's kernels are not looked at: minutes, and not ours
    command = [
        sanitizer,
        "--tool",
        tool,
        "--kernel-regex",
        "kns=fused",
        sys.executable,
        str(PROGRAM),
        *options,
    ]
    path = os.pathsep.join([str(SHARED), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert "done" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"SUMMARY: {verdict}" in done.stdout, done.stdout[-3000:]
