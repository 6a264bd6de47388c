"""The report: sums that can be done by hand, and figures that show everybody."""

import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from measurements import HARDWARE, MODEL, head, run, written

from gptj_serve.benchmark.report import command, figures, statistics
from gptj_serve.benchmark.report.measured import Measured, merge
from gptj_serve.benchmark.results import Cell, Run, read

LONG = {"input_tokens": 30, "prompt_tokens": 30}

GRID = [
    run("slow", 2.0),  # 10 tokens/s
    run("slow", 4.0, 1),  # 5 tokens/s; the cell's mean call takes 3 s
    run("slow", 5.0, **LONG),  # 4 tokens/s
    run("fast", 0.6),  # 33.3 tokens/s; a fifth of 3 s
    run("fast", 2.0, **LONG),  # 10 tokens/s; two fifths of 5 s
    run("fast", 100.0, **LONG, output_tokens=40, problem="39 tokens"),
    run("slow", 100.0, **LONG, output_tokens=40, completion_tokens=40),
]


def measured(tmp_path: Path, runs: list[Run], **changes: Any) -> Measured:
    (found,) = merge({tmp_path: read(written(tmp_path / "one.json", runs, **changes))})
    return found


def report(out: Path, *arguments: Any) -> str:
    assert command.main([*map(str, arguments), "--out", str(out)]) == 0
    return (out / "report.md").read_text()


def row(page: str, start: str) -> list[str]:
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [part.strip() for part in line.split("|")[1:-1]]


def test_the_grid_by_hand(tmp_path: Path) -> None:
    path = written(tmp_path / "one.json", GRID)
    page = report(tmp_path, path, "--baseline", "slow", "--price-per-hour", "3.6")
    # slow: 10, 5, 4 and 0.4 tokens/s: mean 4.85; squares of the differences 26.52, 0.02, 0.72, 19.80
    assert row(page, "`slow`")[:5] == ["`slow`", "3", "4", "4.8", "4.0"]
    # fast: 33.33 and 10: mean 21.67, SD 16.50. Its third cell failed and is nowhere.
    # reductions 80 % and 60 %: mean 70 %, SD 14.1 %
    fast = ["`fast`", "2", "2", "21.7", "16.5", "70.0%", "14.1%", "80.0% (10x20)", "60.0% (30x20)"]
    # weights: 4000 - 100 x 10 = 3000 of 2 bytes. A position of the cache: 2 x 2 x 10 x 2 = 80 bytes.
    # 10x20: 20 x 6000 + 80 x (200 + 210) = 152,800 bytes: 2.547 s at 60,000 a second; of 0.6 s 4.24
    # 30x20: 120,000 + 80 x (600 + 210) = 184,800: 3.08 s; of 2 s 1.54
    # 3.6 an hour is 0.001 a second; 40 tokens in 2.6 s cost 0.0026: 65 a million
    assert row(page, "`fast`") == [*fast, "1.54 to 4.24", "65.00 (at 3.6 an hour)"]
    assert row(page, "30x40")[:3] == ["30x40", "100000.0", "failed"]
    assert row(page, "10x20")[1:] == ["3000.0 (1414.2)", "600.0", "7.5", "33.3"]
    assert row(page, "grid") == ["grid", "`fast`", "30x40", "-", "1", "39 tokens"]
    assert "What a million tokens cost" in page
    assert "What a million tokens cost" not in report(tmp_path, path)


def test_a_cell_that_one_target_was_not_asked(tmp_path: Path) -> None:
    runs = [run("slow", 2.0, **LONG), run("slow", 2.0), run("fast", 1.0)]
    page = report(tmp_path, written(tmp_path / "one.json", runs))
    assert row(page, "30x20")[1:3] == ["2000.0", "-"]


def test_streams_by_hand(tmp_path: Path) -> None:
    times = [0.1, 0.2, 0.3]
    runs = [run("fast", 2.0, n, load="latency", ttft_s=one, tpot_s=0.1) for n, one in enumerate(times)]
    first = run("fast", 9.0, load="latency", ttft_s=7.0, tpot_s=0.5, is_first=True)
    page = report(tmp_path, written(tmp_path / "one.json", [first, *runs]))
    # decoding: 19 tokens of 6000 bytes, at positions 12 to 30: 80 x 399. 145,920 bytes: 2.432 s of 1.9 s
    assert row(page, "`fast`") == [
        *("`fast`", "10x20", "3", "200.0 / 280.0 / 298.0", "100.00 / 100.00 / 100.00"),
        *("2000.0 / 2000.0 / 2000.0", "7000", "1.28"),
    ]


def test_levels_by_hand(tmp_path: Path) -> None:
    two = [run("fast", 2.0, n, load="throughput", concurrency=2, started_s=50.0 + n) for n in range(4)]
    full = {"load": "throughput", "rate": 4.0, "started_s": 10.0}
    rate = [run("fast", 2.0, 0, **full), run("fast", 0.1, 1, **full, status=429, problem="full")]
    broken = [run("slow", 1.0, load="throughput", concurrency=2, status=500, problem="x")]
    page = report(
        tmp_path, written(tmp_path / "one.json", [*two, *rate, *broken]), "--price-per-hour", "fast=36"
    )
    # 80 tokens from 50 to 55 s; 20 tokens in 2 s, one of two refused
    failed = ["failed", "-", "-"]
    assert row(page, "2 at once") == ["2 at once", "10x20", *failed, "16", "2.00 / 2.00", "0"]
    assert row(page, "throughput") == ["throughput", "`slow`", "10x20", "2 at once", "1", "x"]
    not_run = ["-", "-", "-"]
    assert row(page, "4 a second") == ["4 a second", "10x20", *not_run, "10", "2.00 / 2.00", "1 of 2"]
    # 0.01 a second; 16 tokens cost that
    assert row(page, "`fast`") == ["`fast`", "2 at once", "16", "625.00 (at 36 an hour)"]


def test_percentiles_lie_between_values() -> None:
    assert statistics.percentile([4.0, 1.0, 3.0, 2.0], 50) == 2.5
    assert statistics.percentile([0.0, 10.0], 90) == 9.0
    assert statistics.percentile([5.0], 99) == 5.0


def test_gpt_j_6bs_limit_is_the_known_one() -> None:
    model = {
        "num_layers": 28,
        "width": 4096,
        "inner": 16384,
        "vocab_size": 50400,
        "num_weights": 6_050_882_784,
    }
    weights = statistics.weight_bytes_read(model, {"weight_bytes": 2 * 6_050_882_784 + 14_000_000})
    assert weights == pytest.approx(11.69e9, rel=1e-3)
    assert weights == statistics.weight_bytes_read(model, {"bytes_per_weight": 2})
    assert statistics.weight_bytes_read(model, {}) is None
    # 3.82 ms a token at 3.06 TB/s, the cache of 458,752 bytes a token aside
    one = statistics.limit_seconds(model, weights, Cell(0, 1), 3.06e12)
    assert one == pytest.approx(3.82e-3, rel=1e-2)
    more = statistics.limit_seconds(model, weights, Cell(1000, 1), 3.06e12)
    assert (more - one) * 3.06e12 == pytest.approx(1000 * 458_752)


def test_files_of_one_machine_are_put_together(tmp_path: Path) -> None:
    grid = written(tmp_path / "grid.json", [run("slow", 1.0), run("fast", 0.5)])
    again = written(tmp_path / "again.json", [run("fast", 0.7)])
    settings = {"targets": {"fast": {"settings": {"GPTJ_FRONT": "mms"}}}}
    streams = written(
        tmp_path / "s.json", [run("fast", 1.0, load="latency", ttft_s=0.1, tpot_s=0.1)], **settings
    )
    (found,) = merge({path: read(path) for path in (grid, again, streams)})
    assert found.targets("grid") == ["slow", "fast"]
    assert [one.seconds for one in found.of("grid") if one.target == "fast"] == [0.5, 0.7]
    # another setting, but in another load
    assert found.targets("latency") == ["fast"]
    mixed = written(tmp_path / "mms.json", [run("fast", 2.0)], **settings)
    (found,) = merge({path: read(path) for path in (grid, mixed)})
    assert found.targets("grid") == ["slow", "fast [grid]", "fast [mms]"]


STREAM = {"load": "latency", "ttft_s": 0.1, "tpot_s": 0.1}


def test_a_very_first_request_is_no_streams_of_its_own(tmp_path: Path) -> None:
    """Engines that were up together have other settings; their first requests make no second target."""
    together = {"targets": {"fast": {"settings": {"GPTJ_MAX_BATCH_SIZE": "8"}}}}
    first = run("fast", 9.0, **{**STREAM, "ttft_s": 7.0}, is_first=True)
    grid = written(tmp_path / "grid.json", [first, run("fast", 1.0)], **together)
    own = run("fast", 9.0, **{**STREAM, "ttft_s": 6.0}, is_first=True)
    streams = written(tmp_path / "streams.json", [own, run("fast", 1.0, **STREAM)])
    (found,) = merge({path: read(path) for path in (grid, streams)})
    assert list(found.facts) == ["fast"]
    page = report(tmp_path / "out", grid, streams)
    assert row(page, "`fast` | 10x20")[6] == "6000"  # not that of the other settings


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    paths = []
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        paths.append(written(tmp_path / place / "r.json", [run("fast", 1.0)], commit=place))
    (found,) = merge({path: read(path) for path in paths})
    assert set(found.heads) == {str(path.with_suffix("")) for path in paths}
    assert len(found.targets("grid")) == 2


def test_the_limit_is_that_of_the_loads_own_file(tmp_path: Path) -> None:
    grid = [
        written(tmp_path / f"{speed}.json", [run("fast", 1.0, number)], read_bytes_per_s=speed)
        for number, speed in enumerate((60_000.0, 76_400.0))
    ]
    streams = written(tmp_path / "s.json", [run("fast", 1.0, **STREAM)], read_bytes_per_s=152_800.0)
    (found,) = merge({path: read(path) for path in (*grid, streams)})
    assert found.read_bytes_per_s == {"grid": 76_400.0, "latency": 152_800.0}
    page = report(tmp_path / "out", *grid, streams)
    # 152,800 bytes at 76,400 a second: 2 s, of a call of 1 s
    assert row(page, "`fast` | 1 | 2 | 20.0 | 0.0")[-1] == "2.00"


def test_servers_and_endpoints_of_one_file_have_a_section_each(tmp_path: Path) -> None:
    facts = {"fast": head()["targets"]["fast"], "slow": {"kind": "endpoint", "hardware": "ml.g5.xlarge"}}
    runs = [run("fast", 1.0), run("slow", 4.0)]
    page = report(tmp_path, written(tmp_path / "r.json", runs, targets=facts))
    here, there = page.split("# Measured on ml.g5.xlarge")
    assert here.startswith("# Measured on Card A")
    assert ("`fast`" in here, "`slow`" in here) == (True, False)
    assert ("`fast`" in there, "`slow`" in there) == (False, True)
    # our memory's speed is no limit of theirs
    assert ("share of the limit" in here, "share of the limit" in there) == (True, False)
    # an endpoint that was not asked yet has none
    page = report(tmp_path, written(tmp_path / "one.json", runs[:1], targets=facts))
    assert page.count("# Measured on") == 1


def test_levels_come_in_order_and_a_figure_has_one_cell(tmp_path: Path) -> None:
    """Files add levels to each other; a pace with other lengths is another matter."""
    few, many = (
        written(
            tmp_path / f"{name}.json",
            [run("fast", 2.0, n, load="throughput", concurrency=c, **more) for c in levels for n in range(c)],
        )
        for name, levels, more in (("many", (1, 8), {}), ("few", (2,), {}))
    )
    other = written(tmp_path / "z.json", [run("fast", 9.0, load="throughput", concurrency=4, **LONG)])
    page = report(tmp_path / "out", few, many, other)
    rows = [line.split("|")[1:3] for line in page.splitlines() if " at once |" in line]
    cells = [tuple(part.strip() for part in row) for row in rows]
    assert cells == [*((f"{n} at once", "10x20") for n in (1, 2, 8)), ("4 at once", "30x20")]
    (found,) = merge({path: read(path) for path in (few, many, other)})
    svg = figures.tokens_by_concurrency(found)
    assert svg is not None
    assert "10 tokens in, 20 out" in svg
    (line,) = (one for one in ElementTree.fromstring(svg).iter() if "series" in one.get("id", ""))
    points = line[0].get("d", "").split()
    places = [float(point) for point in points[1::3]]
    assert len(places) == 3  # not the fourth, of other lengths
    assert places == sorted(places)


def test_a_line_that_ends_early_keeps_its_name(tmp_path: Path) -> None:
    """A target without a good cell in the last panel."""
    runs = [run(name, 1.0) for name in ("slow", "fast")]
    found = measured(tmp_path, [*runs, run("slow", 1.0, **LONG), run("fast", 1.0, **LONG, problem="x")])
    svg = figures.latency_by_length(found)
    assert svg is not None
    assert series(svg) == {"slow", "fast"}
    assert all(svg.count(f">{name}<") == 1 for name in ("slow", "fast"))


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": {**HARDWARE, "gpu": "Card B"}},
        {"model": {**MODEL, "fingerprint": "other"}},
        {"targets": {"fast": {"kind": "endpoint", "hardware": "ml.g5.xlarge"}}},
    ],
)
def test_other_machines_have_their_own_tables(tmp_path: Path, changes: dict[str, Any]) -> None:
    here = written(tmp_path / "here.json", [run("fast", 1.0)])
    there = written(tmp_path / "there.json", [run("fast", 2.0)], **changes)
    assert len(merge({path: read(path) for path in (here, there)})) == 2
    page = report(tmp_path / "out", here, there)
    assert len(re.findall("^# Measured on", page, re.MULTILINE)) == 2
    assert re.findall(r"\((.*latency\.svg)\)", page) == ["latency.svg", "machine-2/latency.svg"]
    assert (tmp_path / "out/machine-2/latency.svg").exists()


def test_an_engine_has_its_look_in_every_report(tmp_path: Path) -> None:
    alone = figures.looks(measured(tmp_path, [run("a", 1.0)], targets={"a": {"engine": "hf"}}))["a"]
    for number, engines in enumerate(({"x": "fused", "a": "hf"}, {"b": "?", "a": "hf", "c": "vllm"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        facts = {one: {"engine": engine} for one, engine in engines.items()}
        found = figures.looks(measured(folder, [run(one, 1.0) for one in engines], targets=facts))
        assert found["a"] == alone
        assert len(set(found.values())) == len(engines)  # and nobody else has it
    folder = tmp_path / "twice"
    folder.mkdir()
    twice = {"old": {"engine": "hf"}, "new": {"engine": "hf"}}
    found = figures.looks(measured(folder, [run(one, 1.0) for one in twice], targets=twice))
    assert (found["old"] == alone, found["new"] == alone) == (True, False)


@pytest.mark.parametrize(("slowest", "says"), [(2.0, False), (9.0, True)])
def test_a_logarithmic_axis_says_so(tmp_path: Path, slowest: float, says: bool) -> None:
    runs = [run("fast", 1.0), run("slow", slowest)]
    runs += [
        run(one.target, one.seconds, load="latency", ttft_s=one.seconds, tpot_s=one.seconds) for one in runs
    ]
    found = measured(tmp_path, runs)
    grid, streams = figures.latency_by_length(found), figures.distribution(found)
    assert grid is not None
    assert streams is not None
    assert ("mean whole call, s, log scale" in grid) == says
    assert ("between tokens, ms, log scale" in streams) == says
    assert "tokens out, log" not in grid


def series(svg: str) -> set[str]:
    """The names of the lines of a figure; it has to be well-formed."""
    names = {element.get("id") for element in ElementTree.fromstring(svg).iter()}
    return {name.split(" ", 2)[2] for name in names if name and name.startswith("series ")}


NAMES = ("hf", "deepspeed", "fused", "ctranslate2", "vllm", "transformers-compiled", "seventh")


@pytest.mark.parametrize("number", [1, 3, 7])
def test_figures_show_every_target(tmp_path: Path, number: int) -> None:
    runs = []
    for place, name in enumerate(NAMES[:number]):
        runs += [
            run(name, (1 + place) * size / 20, input_tokens=length, output_tokens=size)
            for size in (20, 40)
            for length in (10, 30)
        ]
        runs += [run(name, 1.0 + place, load="latency", ttft_s=0.1 + place, tpot_s=0.2)]
        runs += [run(name, 1.0 + place, load="throughput", concurrency=one) for one in (1, 8)]
    found = measured(tmp_path, runs, targets={name: {} for name in NAMES[:number]})
    drawn = [
        figures.latency_by_length(found),
        figures.tokens_by_concurrency(found),
        figures.distribution(found),
    ]
    for svg in drawn:
        assert svg is not None
        assert series(svg) == set(NAMES[:number])
        assert all(f">{name}<" in svg for name in NAMES[:number])  # written, not only coloured
    looks = list(figures.looks(found).values())
    assert len({look.marker for look in looks}) == len({str(look.dashes) for look in looks}) == min(number, 6)


def contrast(one: str, other: str) -> float:
    """Of two colours, as WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#0d1117"])
def test_figures_are_legible_on_white_and_on_dark(background: str) -> None:
    assert contrast(figures.INK, background) > 4
    assert min(contrast(colour, background) for colour in figures.COLOURS) > 2.8


def test_text_of_like_lines_is_kept_apart() -> None:
    moved = figures._apart({"a": 0.5, "b": 0.51, "c": 0.52, "far": 0.9})
    places = sorted(moved.values())
    assert min(high - low for low, high in itertools.pairwise(places)) > 0.9 * figures.LABEL_GAP
    assert moved["far"] == 0.9
    assert moved["b"] == pytest.approx(0.51, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--baseline", "nobody"), "--baseline nobody: must be one of slow, fast"),
        (("--price-per-hour", "0"), "--price-per-hour 0: must be a number above 0"),
        (("--price-per-hour", "hf=1"), "--price-per-hour hf=1: must be"),
    ],
)
def test_wrong_usage(
    tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "r.json", [run("slow", 1.0), run("fast", 1.0)])
    with pytest.raises(SystemExit):
        command.main([str(path), *arguments, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "r.json", [run("slow", 1.0)])
    assert command.main([str(path), "--out", str(path)]) == 1
    assert f"--out {path}: File exists" in capsys.readouterr().err


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([str(tmp_path / "none.json")]) == 1
    assert "no file of results" in capsys.readouterr().err


def test_starts_memory_and_who_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    results = written(path, [], **head(skipped={"vllm": "the package vllm is not installed"}))
    found = read(results)
    found.starts = [
        {"target": "fast", "seconds": one, "parts": {"imports": one / 2}, "loading": {"upload": 0.25}}
        for one in (9.0, 10.0, 20.0)
    ]
    peaks = {"gpu_bytes": 3 << 30, "pss_bytes": 1 << 30, "rss_bytes": 2 << 30, "gpu_counts": "whole GPU"}
    found.memory = [{"target": "fast", "start": {"pss_bytes": 1 << 29}, "load": peaks}]
    found.save()
    page = report(tmp_path / "out", path)
    assert row(page, "`fast`") == ["`fast`", "3", "10.0", "20.0", "5.00", "0.25"]
    assert row(page, "`fast` (GPU: all of it)")[1:] == ["-", "3.00", "0.50", "1.00", "-", "2.00"]
    assert "`vllm` was not measured: the package vllm is not installed." in page
