"""Orders of requests, and who is measured when."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from measurements import head, run

from gptj_serve.benchmark.results import Cell, Level, ResultsFile
from gptj_serve.benchmark.run import concurrent_load as together
from gptj_serve.benchmark.run import options, schedule
from gptj_serve.benchmark.run import rotation as turns
from gptj_serve.benchmark.run.concurrent_load import Burst, arrivals, num_requests, open_loop

CELLS = [Cell(10, 20), Cell(10, 40), Cell(30, 20)]


def test_targets_take_turns_in_every_cell() -> None:
    steps = schedule.steps("grid", CELLS, {"a": range(3), "b": range(2)}, seed=1)
    assert [step.target for step in steps[:12]] == ["a", "b"] * 6
    assert [step.target for step in steps[12:]] == ["a"] * 3  # b has had its two
    for first, second in zip(steps[:12:2], steps[1:12:2], strict=True):
        assert (first.cell, first.number) == (second.cell, second.number)
    # all cells before any comes again, in another order
    assert [step.number for step in steps] == [0] * 6 + [1] * 6 + [2] * 3
    assert {step.cell for step in steps[:6]} == set(CELLS)
    orders = {
        tuple(step.cell for step in schedule.steps("grid", CELLS, {"a": [0]}, seed)) for seed in range(9)
    }
    assert len(orders) > 1
    assert steps == schedule.steps("grid", CELLS, {"a": range(3), "b": range(2)}, seed=1)


def test_what_is_left() -> None:
    steps = schedule.steps("grid", CELLS, {"a": range(2)}, seed=0)
    done = [run("a", 1.0, 0), run("a", 1.0, 1), run("b", 1.0, 0), run("a", 1.0, 0, load="latency")]
    left = schedule.left(steps, done)
    assert len(left) == 4
    assert not [step for step in left if step.cell == Cell(10, 20)]


def test_rounds_share_the_runs() -> None:
    shares = [schedule.share(20, turn, 3) for turn in range(3)]
    assert [number for share in shares for number in share] == list(range(20))
    assert {len(share) for share in shares} == {6, 7}


def test_every_prompt_length_is_warmed_up() -> None:
    cells = [Cell(10, 8), Cell(10, 40), Cell(30, 5)]
    assert schedule.warm_up(cells) == [Cell(10, schedule.WARM_UP_TOKENS), Cell(30, 5)]


def parse(*arguments: str) -> options.Options:
    return options.parse([*arguments, "--out", "r.json"])


SPAWN = ("--spawn", "fused,hf", "--model", "m", "--runs", "4", "--inputs", "10", "--outputs", "20")


def test_engines_take_turns_in_rounds() -> None:
    asked = parse(*SPAWN, "--rounds", "2", "--runs", "hf=2", "--url", "http://a:1")
    found = turns.turns(asked)
    assert [turn.names for turn in found] == [("a:1",), ("fused",), ("hf",), ("fused",), ("hf",)]
    assert [turn.share(asked.runs) for turn in found[1:]] == [
        {"fused": range(2)},
        {"hf": range(1)},
        {"fused": range(2, 4)},
        {"hf": range(1, 2)},
    ]


def test_together_everybody_is_up_at_once() -> None:
    asked = parse(*SPAWN, "--together", "--url", "x=http://a:1")
    (turn,) = turns.turns(asked)
    assert turn.names == ("x", "fused", "hf")
    bounds = {"GPTJ_MAX_BATCH_SIZE": "8", "GPTJ_MAX_CONTEXT": "300"}  # of 200x100, the latency's cell
    assert [dict(spawn.settings) for spawn in turn.spawns] == [bounds, bounds]


def test_what_a_turn_still_has_to_do(tmp_path: Path) -> None:
    loads = ("--load", "grid,throughput,memory", "--concurrency", "1,4", "--throughput-cell", "5x10")
    asked = parse(*SPAWN, *loads, "--rounds", "2")
    results = ResultsFile.open(tmp_path / "r.json", head())
    first, _, last, _ = turns.turns(asked)
    assert turns.left(first, asked, results).bursts == ()  # once, in the last round
    left = turns.left(last, asked, results)
    cell = Cell(5, 10)
    assert left.bursts == (
        Burst("fused", cell, Level(concurrency=1), 8),
        Burst("fused", cell, Level(concurrency=4), 12),
    )
    # two runs of 20 tokens; 8 requests of one client, and 3 of each of four
    assert left.tokens == {"fused": 2 * 20 + 10 * 8 + 10 * 12}
    assert left.memory == ("fused",)
    level = {"load": "throughput", "input_tokens": 5, "output_tokens": 10, "concurrency": 4}
    results.runs = [run("fused", 1.0, number) for number in range(4)] + [run("fused", 1.0, **level)]
    results.memory = [{"target": "fused"}]
    left = turns.left(last, asked, results)
    assert (left.tokens, left.names) == ({"fused": 10 * 8}, {"fused"})
    results.runs.append(run("fused", 1.0, **level | {"concurrency": 1}))
    assert not turns.left(last, asked, results).names


def test_only_who_has_something_left_is_up_again(tmp_path: Path) -> None:
    asked = parse(*SPAWN, "--runs", "hf=1", "--together", "--url", "x=http://a:1")
    results = ResultsFile.open(tmp_path / "r.json", head())
    (turn,) = turns.turns(asked)
    assert turns.left(turn, asked, results).names == {"x", "fused", "hf"}
    results.runs = [run("hf", 1.0)] + [run("x", 1.0, number) for number in range(4)]
    left = turns.left(turn, asked, results)
    assert left.names == {"fused"}
    only = turn.only(left.names)
    assert (only.names, only.urls) == (("fused",), {})


def test_a_peer_without_a_server_is_done_when_its_one_client_is(tmp_path: Path) -> None:
    levels = ("--load", "throughput", "--concurrency", "1,4", "--throughput-cell", "5x10")
    asked = parse("--spawn", "ctranslate2,vllm", "--model", "m", *levels)
    results = ResultsFile.open(tmp_path / "r.json", head())
    peer, server = turns.turns(asked)
    assert [burst.level.concurrency for burst in turns.left(peer, asked, results).bursts] == [1]
    assert [burst.level.concurrency for burst in turns.left(server, asked, results).bursts] == [1, 4]
    done = {"load": "throughput", "input_tokens": 5, "output_tokens": 10, "concurrency": 1}
    results.runs = [run("ctranslate2", 1.0, **done)]
    assert not turns.left(peer, asked, results).names


def test_arrivals_are_a_seeded_poisson_process() -> None:
    times = arrivals(Level(rate=5.0), 4000, seed=3)
    assert times == arrivals(Level(rate=5.0), 4000, seed=3) != arrivals(Level(rate=5.0), 4000, seed=4)
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert min(gaps) > 0
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(0.2, rel=0.05)
    # of an exponential distribution, the standard deviation is the mean
    assert (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5 == pytest.approx(mean, rel=0.08)


def test_how_many_requests_a_level_has() -> None:
    numbers = [num_requests(Level(concurrency=one), per_client=3, seconds=2.0) for one in (1, 3, 64)]
    assert numbers == [8, 9, 192]
    assert num_requests(Level(rate=2.5), per_client=3, seconds=2.0) == 5


def test_what_a_busy_client_sends_late_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request is timed from when it should have come: a client that is held up does not hide a wait."""
    now_s, late_s = 0.0, {}

    async def ask(which: int, late: float) -> None:
        nonlocal now_s
        late_s[which] = late
        if which == 0:
            now_s += 0.2  # the whole client stands still

    async def main() -> None:
        """Time passes only where the loop waits, and in `ask`."""
        loop: Any = asyncio.get_running_loop()
        look = loop._selector.select

        def wait(timeout_s: float) -> Any:
            nonlocal now_s
            now_s += timeout_s
            return look(0)

        loop.time = lambda: now_s
        loop._selector.select = wait
        await open_loop(ask, [0.01, 0.05, 0.5])

    monkeypatch.setattr(together, "time", SimpleNamespace(monotonic=lambda: now_s))
    asyncio.run(main())
    assert late_s == pytest.approx({0: 0.0, 1: 0.16, 2: 0.0})
