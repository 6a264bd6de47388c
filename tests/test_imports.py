"""Imports go one way: the fronts start fast and small, and deploying is no part of serving."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "deepspeed", "boto3"}


@pytest.mark.parametrize(
    "modules",
    [
        "inference, gptj_serve.serving.mms, gptj_serve.serving.mms_handler",
        "gptj_serve.engine.static.scheduler, gptj_serve.request, gptj_serve.wire, gptj_serve.settings",
        "gptj_serve.engine.fused.schedule.scheduler",
        "gptj_serve.launcher, gptj_serve.run_local",
        "gptj_serve.serving.http.app, gptj_serve.serving.http.protocol, gptj_serve.serving.http.__main__",
        "gptj_serve.serving.tokenizing.prepare, gptj_serve.serving.tokenizing.convert",
        "gptj_serve.models.model_dir, gptj_serve.engine.choose, gptj_serve.engine.sampling.uniform",
    ],
)
def test_light_modules_import_nothing_heavy(modules: str) -> None:
    loaded = {name.split(".")[0] for name in modules_after(f"import {modules}")}
    assert loaded & HEAVY == set()
    assert "gptj_serve" in loaded


def test_the_engine_imports_no_front_and_transformers_only_where_it_is_needed() -> None:
    """It takes longer than PyTorch, and a start with the fused engine should take no longer than it must."""
    modules = (
        "gptj_serve.engine.build, gptj_serve.engine.sampling.sampler, gptj_serve.engine.fused.weights.load"
    )
    loaded = modules_after(f"import {modules}")
    assert {name.split(".")[0] for name in loaded} & HEAVY == {"torch"}
    assert not [name for name in loaded if name.startswith("gptj_serve.serving")]


def modules_after(statement: str) -> list[str]:
    """Names of all modules that a fresh interpreter has after a statement."""
    # sagemaker-inference warns of its own use of pkg_resources
    command = [sys.executable, "-W", "ignore", "-c", f"{statement}; import sys; print(*sys.modules)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
