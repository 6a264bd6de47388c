"""What a soak says of a run: names of processes, percentiles, and whether all was right."""

import random
import types
from pathlib import Path
from typing import Any

import pytest

from gptj_serve.benchmark import soak

REPORT = {
    "wrong": [],
    "sequences_left": 0.0,
    "resources_before": {"open_files": 40},
    "resources_after": {"open_files": 40},
    "ping_p99_ms": {"without": 10.0, "with_attacks": 20.0},
    "growth_mib": 100.0,
}


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["/usr/bin/python", "-I", "-m", "gptj_serve.engine", "--socket", "s"], "gptj_serve.engine"),
        (["python3", "./serve"], "serve"),
        (["/opt/serve"], "serve"),
        (["java", "-Xmx1g", "com.amazonaws.ml.mms.ModelServer"], "com.amazonaws.ml.mms.ModelServer"),
    ],
)
def test_a_process_has_a_name_however_it_was_started(command: list[str], name: str) -> None:
    assert soak._name(command) == name


def test_pings_are_split_where_attacks_begin() -> None:
    pings = [(float(second), second / 1000) for second in range(300)]
    assert soak._percentiles(pings, 100.0) == {"without": 98.0, "with_attacks": 297.0}


def test_without_attacks_or_process_nothing_more_is_asked() -> None:
    assert soak.is_right(
        {name: REPORT[name] for name in ("wrong", "sequences_left", "resources_after")}
        | {"resources_before": None}
    )


@pytest.mark.parametrize(
    ("changes", "is_right"),
    [
        ({}, True),
        ({"ping_p99_ms": {"without": 10.0, "with_attacks": 20.1}}, False),
        ({"growth_mib": 129.0}, False),
        ({"growth_mib": None}, True),
        ({"wrong": ["whole"]}, False),
        ({"sequences_left": 1.0}, False),
        ({"resources_after": {"open_files": 41}}, False),
    ],
)
def test_what_is_right(changes: dict[str, Any], is_right: bool) -> None:
    assert soak.is_right({**REPORT, **changes}) is is_right


def test_attacks_are_a_tenth_once_they_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "time", types.SimpleNamespace(monotonic=lambda: 5.0))
    dice = random.Random(1)

    async def no_attack(_: float) -> None: ...

    def share(attacks_from_s: float) -> float:
        run = soak.SoakState({}, 10.0, attack=no_attack, attacks_from_s=attacks_from_s)
        return sum(soak._kind(dice, run) == "attack" for _ in range(5000)) / 5000

    assert share(6.0) == 0
    assert 0.08 < share(5.0) < 0.12


def test_an_attack_that_gets_through_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak.sys, "path", list(soak.sys.path))
    monkeypatch.setitem(soak.sys.modules, "attacks", types.ModuleType("attacks"))
    monkeypatch.delitem(soak.sys.modules, "attacks")  # so that what was there before comes back at the end
    (tmp_path / "attacks.py").write_text(
        "import types\n"
        "def broken(target): raise AssertionError(target)\n"
        "Target = types.SimpleNamespace(of=lambda url, pid: types.SimpleNamespace(front='http'))\n"
        "ALL = [types.SimpleNamespace(run=broken, name='broken', fronts=('http',), is_cheap=True)]\n"
    )
    with pytest.raises(soak.GotThrough, match="broken: AssertionError"):
        soak.try_attack("http://127.0.0.1:1", str(tmp_path), 0.99)
