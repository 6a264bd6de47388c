"""What the last step of building an image finds."""

import _ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from gptj_serve import self_check
from gptj_serve.engine.fused.kernels import library as compiler
from gptj_serve.errors import StartupError


def test_this_installation_is_whole() -> None:
    command = [sys.executable, "-m", "gptj_serve.self_check"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "torch " in ran.stdout
    assert "openjdk " in ran.stdout


def test_a_package_of_the_wrong_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch>=99", "no-such-package", 'never-needed; extra == "other"', "numpy>=1"]
    monkeypatch.setattr(self_check, "requires", lambda _: wanted)
    wrong_torch, missing = self_check.check_packages()
    assert wrong_torch.startswith("torch is 2.")
    assert wrong_torch.endswith("required is >=99")
    assert missing == "no-such-package is not installed"


def test_no_java_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_none(_: object) -> None:
        raise StartupError("no Java runtime")

    monkeypatch.setattr(self_check.mms, "find_java", find_none)
    assert self_check.check_java() == ["Java does not start: no Java runtime"]


def test_kernels_that_do_not_load_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("torch.version.cuda", "12.6")
    monkeypatch.setattr(self_check, "KERNELS", "gptj_serve.no_such_module")
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "libfused.so")
    deepspeed, fused = self_check.check_kernels()
    assert deepspeed.startswith("DeepSpeed's kernels do not load: No module named")
    assert fused == f"the fused engine's kernels are not there: {tmp_path}/libfused.so is missing"
    compiler.PREBUILT.write_text("no library")
    (fused,) = self_check.check_fused_kernels()
    assert fused.startswith(f"the fused engine's kernels do not load: {tmp_path}/libfused.so: ")


def test_a_library_of_other_sources_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "PREBUILT", Path(_ctypes.__file__))
    (problem,) = self_check.check_fused_kernels()
    assert "lacks a function" in problem
    assert "fused_sizes" in problem
