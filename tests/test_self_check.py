"""What the last step of building an image finds."""

import subprocess
import sys

import pytest

from gptj_serve import self_check
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


def test_kernels_that_do_not_load_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.version.cuda", "12.6")
    monkeypatch.setattr(self_check, "KERNELS", "gptj_serve.no_such_module")
    (problem,) = self_check.check_kernels()
    assert problem.startswith("DeepSpeed's kernels do not load: No module named")
