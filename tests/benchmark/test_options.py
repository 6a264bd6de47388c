"""The command line of ``run``: what it says is what is done, and what is wrong is named."""

from pathlib import Path

import pytest

from gptj_serve import demo
from gptj_serve.benchmark.results import Cell, Level
from gptj_serve.benchmark.run import options


def parse(*arguments: str) -> options.Options:
    return options.parse([*arguments, "--out", "r.json"])


def test_the_experiment_is_the_default() -> None:
    asked = parse("--url", "http://127.0.0.1:8080")
    assert asked.loads == ("grid",)
    assert {cell.input_tokens for cell in asked.cells} == {50, 200, 500, 1000}
    assert {cell.output_tokens for cell in asked.cells} == {50, 100, 150, 200}
    assert (len(asked.cells), dict(asked.runs)) == (16, {"127.0.0.1:8080": 20})
    assert [level.concurrency for level in asked.levels] == [1, 2, 4, 8, 16, 32, 64]


def test_names_numbers_and_settings_of_one_target() -> None:
    asked = parse(
        *("--url", "old=http://a:1/x?y=z", "--endpoint", "e", "--spawn", "fused,small=fused", "--model", "m"),
        *("--runs", "small=3", "--runs", "7", "--set", "small:A=1=2", "--set", "B=3"),
        *("--rates", "0.5,2", "--concurrency", "2", "--load", "latency", "--load", "grid,throughput"),
    )
    assert asked.names == ("old", "e", "fused", "small")
    assert dict(asked.urls) == {"old": "http://a:1/x?y=z"}
    assert dict(asked.runs) == {"old": 7, "e": 7, "fused": 7, "small": 3}
    assert [dict(spawn.settings) for spawn in asked.spawns] == [{"B": "3"}, {"A": "1=2", "B": "3"}]
    assert asked.levels == (Level(concurrency=2), Level(rate=0.5), Level(rate=2.0))
    assert asked.longest == 1200
    assert parse("--url", "http://a", "--latency-cells", "1x2,3x4").latency_cells == (Cell(1, 2), Cell(3, 4))


def test_what_is_said_twice_is_measured_once() -> None:
    asked = parse("--url", "http://a", "--inputs", "5,5", "--outputs", "7,8,7", "--concurrency", "2,2")
    assert asked.cells == (Cell(5, 7), Cell(5, 8))
    assert asked.levels == (Level(concurrency=2),)


def test_settings_reach_the_server() -> None:
    (spawn,) = parse("--spawn", "fused", "--model", "m", "--set", "GPTJ_FRONT=mms").spawns
    given = spawn.environment({"GPTJ_MAX_QUEUE": "5", "HOME": "/", "GPTJ_REQUEST_TIMEOUT_S": "9"})
    assert given["GPTJ_FRONT"] == "mms"
    assert (given["GPTJ_ENGINE"], given["GPTJ_MAX_QUEUE"], given["GPTJ_REQUEST_TIMEOUT_S"]) == (
        "fused",
        "5",
        "9",
    )
    facts = spawn.facts({"GPTJ_MODEL_DIR": "/m", "SECRET": "x"})
    assert facts["settings"]["GPTJ_FRONT"] == "mms"
    assert "x" not in str(facts)


def test_the_model_is_the_demo_or_a_whole_path() -> None:
    assert parse("--spawn", "fused").model == demo.MODEL_DIR
    assert parse("--spawn", "fused", "--model", "m").model == Path.cwd() / "m"
    assert parse("--url", "http://a").model is None  # what runs there is not known


SPAWN = ("--spawn", "fused", "--model", "m")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a target is needed: --url, --endpoint or --spawn"),
        (("--spawn", "fast", "--model", "m"), "--spawn fast: must be one of auto, fused"),
        (("--spawn", "fused,fused", "--model", "m"), "fused: a name for two targets"),
        (("--url", "http://a", "--load", "memory"), "--load memory: only what --spawn starts"),
        ((*SPAWN, "--load", "speed"), "'speed' must be of grid, latency, throughput, load, memory"),
        ((*SPAWN, "--load", ""), "--load: '' has no value"),
        ((*SPAWN, "--outputs", ","), "--outputs: ',' has no value"),
        ((*SPAWN, "--inputs", "0"), "'0' must be a whole number from 1 to"),
        ((*SPAWN, "--concurrency", "1,x"), "'x' must be a whole number from 1 to 4096"),
        ((*SPAWN, "--rates", "-1"), "'-1' must be a number from 0.001"),
        ((*SPAWN, "--latency-cells", "5"), "'5' must be input x output tokens such as 200x100"),
        ((*SPAWN, "--runs", "0"), "--runs 0: must be a whole number from 1"),
        ((*SPAWN, "--runs", "hf=1"), "--runs hf=1: must be a whole number from 1, with NAME="),
        ((*SPAWN, "--set", "hf:A=1"), "--set hf:A=1: must be KEY=VALUE"),
        (("--url", "http://a", "--set", "A=1"), "--set: only what --spawn starts"),
        ((*SPAWN, "--set", "A"), "--set A: must be KEY=VALUE"),
        (
            (*SPAWN, "--together", "--load", "throughput"),
            "--together gives each engine GPTJ_MAX_BATCH_SIZE=8",
        ),
        (("--spawn", "vllm,hf", "--model", "m", "--together"), "--together: peers take turns"),
    ],
)
def test_wrong_usage_is_named(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_throughput_together_needs_a_chosen_batch_size() -> None:
    asked = parse(*SPAWN, "--together", "--load", "throughput", "--set", "GPTJ_MAX_BATCH_SIZE=16")
    assert asked.spawns[0].settings["GPTJ_MAX_BATCH_SIZE"] == "16"
