"""Imports go one way: the fronts start fast and small, and deploying is no part of serving."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "deepspeed", "boto3"}


@pytest.mark.parametrize(
    "modules",
    [
        "inference, gptj_serve.serving.mms, gptj_serve.serving.mms_handler",
        "gptj_serve.engine.scheduler, gptj_serve.request, gptj_serve.wire, gptj_serve.settings",
        "gptj_serve.launcher, gptj_serve.run_local",
        "gptj_serve.engine.model_dir, gptj_serve.engine.choose, gptj_serve.engine.uniform",
    ],
)
def test_light_modules_import_nothing_heavy(modules: str) -> None:
    code = f"import sys, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    # sagemaker-inference warns of its own use of pkg_resources
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert loaded & HEAVY == set()
    assert "gptj_serve" in loaded


def test_the_engine_does_not_import_the_fronts() -> None:
    code = "import sys, gptj_serve.engine.build; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert not [name for name in done.stdout.split() if name.startswith("gptj_serve.serving")]
