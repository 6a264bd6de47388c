"""How `auto` comes by the kernels, and what it does when they turn out not to compile."""

import logging
from pathlib import Path

import pytest
import torch

from gptj_serve import demo
from gptj_serve.engine import build
from gptj_serve.engine.choose import Machine
from gptj_serve.engine.fused import build as load
from gptj_serve.engine.fused.kernels import library as compiler
from gptj_serve.errors import StartupError
from gptj_serve.models.model_dir import find_checkpoint
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
        None,
    )


def test_who_asks_for_fused_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_library", refuse)
    settings = Settings.from_env({"GPTJ_ENGINE": "fused"})
    assert build._choose(settings, T4, find_checkpoint(demo.MODEL_DIR))[0] == "fused"  # and loading it fails


class LoadedError(Exception):
    """Loading has come as far as the test needs."""


def test_auto_looks_for_the_kernels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise LoadedError

    (tmp_path / "libfused.so").touch()
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "libfused.so")
    monkeypatch.setattr(build, "look_at_machine", lambda _: T4)
    monkeypatch.setattr(build, "describe", lambda _: {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(load, "_architecture", lambda _: "7.5")
    monkeypatch.setattr(load, "load_weights", stop)
    caplog.set_level(logging.INFO)
    with pytest.raises(LoadedError):
        build.build_engine(Settings.from_env({}), find_checkpoint(demo.MODEL_DIR), tmp_path / "socket")
    events = [getattr(record, "fields", {}).get("event") for record in caplog.records]
    assert events.count("kernels_loaded") == 1
