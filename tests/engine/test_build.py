"""What `auto` does about kernels that turn out not to compile."""

from pathlib import Path

import pytest

from gptj_serve import demo
from gptj_serve.engine import build
from gptj_serve.engine.choose import Machine
from gptj_serve.engine.model_dir import find_checkpoint
from gptj_serve.errors import StartupError
from gptj_serve.settings import Settings

T4 = Machine("Tesla T4", (7, 5), None, None)


def refuse(_env: object, architectures: list[str]) -> Path:
    raise StartupError(f"the kernels do not compile for {architectures[0]}")


def test_auto_passes_over_kernels_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_library", refuse)
    chosen = build._choose(Settings.from_env({}), T4, find_checkpoint(demo.MODEL_DIR))
    assert chosen == (
        "deepspeed",
        "auto: its kernels run on Tesla T4 (the kernels do not compile for 7.5)",
    )


def test_who_asks_for_fused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_library", refuse)
    settings = Settings.from_env({"GPTJ_ENGINE": "fused"})
    assert build._choose(settings, T4, find_checkpoint(demo.MODEL_DIR))[0] == "fused"  # and loading it fails
