"""docs/operations.md speaks of what there is."""

import importlib
import re

import pytest

from gptj_serve.aws.endpoint import alarms, lookup
from gptj_serve.request import EngineStats
from gptj_serve.serving.http.metrics import Metrics
from gptj_serve.settings import KEYS
from support.aws.run_commands import call
from support.server import ROOT
from support.serving_fakes import model_info

AWS = ROOT / "code/gptj_serve/aws"
PAGE = (ROOT / "docs/operations.md").read_text()
CODE = re.findall(r"`([^`\n]+)`", PAGE) + re.findall(r"^    (.+)$", PAGE, re.MULTILINE)


def test_every_metric_is_one_of_ours() -> None:
    named = {name for code in CODE for name in re.findall(r"\bgptj_[a-z_]+", code)} - {"gptj_serve"}
    assert len(named) > 10
    shown = metrics()
    unknown = {
        name
        for name in named
        if not re.search(rf"^# TYPE {name.removesuffix('_total')}(_total)? ", shown, re.M)
    }
    assert unknown == set()


def metrics() -> str:
    """What ``/metrics`` shows."""
    stats = EngineStats(**dict.fromkeys(EngineStats.__annotations__, 0))
    return Metrics(model_info(), lambda: stats).render()[0].decode()


def test_every_setting_exists() -> None:
    named = {name for code in CODE for name in re.findall(r"\bGPTJ_[A-Z_]+", code)} - {"GPTJ_"}
    assert named
    assert named <= set(KEYS)


def test_every_alarm_of_updates_is_listed() -> None:
    prefix = lookup.alarm_prefix("NAME")
    assert {f"{prefix}{kind}" for kind in alarms.KINDS} <= set(CODE)


SCRIPTS = sorted({name for code in CODE for name in re.findall(r"scripts/([a-z-]+)", code)})
COMMANDS = [name for name in SCRIPTS if (AWS / f"{name.replace('-', '_')}.py").exists()]


def test_every_script_exists() -> None:
    assert "deploy" in COMMANDS
    for name in SCRIPTS:
        assert (ROOT / "scripts" / name).exists(), name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_exists(name: str) -> None:
    module = name.replace("-", "_")
    importlib.import_module(f"gptj_serve.aws.{module}")
    shown = call(module, "--help").out
    options = {
        option
        for code in CODE
        for line in re.findall(rf"scripts/{name}\b([^`#]*)", code)
        for option in re.findall(r"(?<!\S)--[a-z-]+", line)
    }
    assert {option for option in options if option not in shown} == set()
