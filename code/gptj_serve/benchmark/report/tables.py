"""Writes the report's tables in Markdown."""

import statistics as plain
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gptj_serve.benchmark.facts.surroundings import UNKNOWN
from gptj_serve.benchmark.report import statistics
from gptj_serve.benchmark.report.measured import Measured, bad_cells, good_cells, good_levels
from gptj_serve.benchmark.results import Cell, Run

PERCENTILES = (50, 90, 99)
GIB = 1 << 30
NOTHING = "-"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the reader wants to know besides.

    Attributes:
        baseline: Target that others are compared with; None compares nobody.
        usd_per_hour: Price of the machine by target; may be empty.
    """

    baseline: str | None
    usd_per_hour: Mapping[str, float]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def surroundings(measured: Measured) -> str:
    """On which machine, with which versions and when it was measured."""
    hardware, parts = measured.hardware, ("target", "gpu", "cpu")
    machine = [str(hardware[part]) for part in parts if hardware.get(part, "none") != "none"]
    if "num_cpus" in hardware:
        machine.append(f"{hardware['num_cpus']} CPUs, {hardware['memory_gib']} GiB")
    head = ["file", "date", "commit", "versions"] + ["memory read, TB/s"] * bool(measured.read_bytes_per_s)
    rows = []
    for stem, known in measured.heads.items():
        speed = known.get("read_bytes_per_s")
        versions = ", ".join(f"{name} {number}" for name, number in known["versions"].items())
        row = [f"`{stem}`", known["when"], known["commit"][:12], versions or UNKNOWN]
        row += [f"{speed / 1e12:.3f}" if speed else NOTHING] * bool(measured.read_bytes_per_s)
        rows.append(row)
    lines = ["; ".join(machine) + "."]
    skipped = {name: why for head in measured.heads.values() for name, why in head.get("skipped", {}).items()}
    lines += [f"`{name}` was not measured: {why}." for name, why in skipped.items()]
    return " ".join(lines) + "\n\n" + table(head, rows)


def grid_summary(measured: Measured, wanted: Wanted) -> str:
    """A row for each target: pace, reduction, share of the limit, cost."""
    cells = good_cells(measured.of("grid"))
    head = ["target", "cells", "runs", "tokens/s, mean", "SD"]
    if wanted.baseline:
        head += [f"latency less than `{wanted.baseline}`", "SD", "best cell", "worst cell"]
    head += ["share of the limit"] if "grid" in measured.read_bytes_per_s else []
    head += ["USD a million tokens"] if wanted.usd_per_hour else []
    rows = [_grid_row(measured, wanted, cells, name) for name in measured.targets("grid")]
    return table(head, [[*row, *[NOTHING] * (len(head) - len(row))] for row in rows])


def _grid_row(
    measured: Measured, wanted: Wanted, cells: Mapping[tuple[str, Cell], list[Run]], name: str
) -> list[str]:
    own = {cell: runs for (target, cell), runs in cells.items() if target == name}
    runs = [run for found in own.values() for run in found]
    if not runs:
        return [f"`{name}`", "0", "0"]
    pace = statistics.tokens_per_s(runs)
    row = [f"`{name}`", str(len(own)), str(len(runs)), f"{pace.mean:.1f}", f"{pace.sd:.1f}"]
    if wanted.baseline:
        row += _reduction(cells, name, wanted.baseline)
    if "grid" in measured.read_bytes_per_s:
        shares = [_call_share(measured, name, cell, found) for cell, found in own.items()]
        row.append(_percent_range([share for share in shares if share is not None]))
    if wanted.usd_per_hour:
        row.append(_usd(wanted, name, statistics.pace(runs)))
    return row


def _reduction(cells: Mapping[tuple[str, Cell], list[Run]], name: str, baseline: str) -> list[str]:
    parts = statistics.reductions(
        statistics.mean_seconds(cells, name), statistics.mean_seconds(cells, baseline)
    )
    if not parts or name == baseline:
        return [NOTHING] * 4
    spread = statistics.Spread.of([*parts.values()])
    extremes = (max(parts, key=parts.__getitem__), min(parts, key=parts.__getitem__))
    return [f"{spread.mean:.1%}", f"{spread.sd:.1%}", *(f"{parts[cell]:.1%} ({cell})" for cell in extremes)]


def _call_share(measured: Measured, name: str, cell: Cell, runs: Sequence[Run]) -> float | None:
    least_s = _limit_s(measured, "grid", name, cell)
    return None if least_s is None else least_s / plain.fmean(run.seconds for run in runs)


def _limit_s(measured: Measured, load: str, name: str, cell: Cell) -> float | None:
    speed = measured.read_bytes_per_s.get(load)
    if measured.model is None or speed is None:
        return None
    weights = statistics.weight_bytes_read(measured.model, measured.facts[name])
    return None if weights is None else statistics.limit_seconds(measured.model, weights, cell, speed)


def grid_cells(measured: Measured) -> str:
    """A row for each cell: mean whole call and tokens/s of every target."""
    cells, names = good_cells(measured.of("grid")), measured.targets("grid")
    tried = {(run.target, run.cell) for run in measured.of("grid")}
    head = ["input x output", *(f"`{name}`: ms (SD)" for name in names)]
    head += [f"`{name}`: tokens/s" for name in names]
    rows = []
    for cell in sorted({run.cell for run in measured.of("grid")}):
        found = [cells.get((name, cell)) for name in names]
        times = [
            _milliseconds(runs) if runs else FAILED if (name, cell) in tried else NOTHING
            for name, runs in zip(names, found, strict=True)
        ]
        paces = [f"{statistics.tokens_per_s(runs).mean:.1f}" if runs else NOTHING for runs in found]
        rows.append([str(cell), *times, *paces])
    return table(head, rows)


def _milliseconds(runs: Sequence[Run]) -> str:
    """Mean and standard deviation; a single run has none."""
    spread = statistics.Spread.of([1000 * run.seconds for run in runs])
    return f"{spread.mean:.1f} ({spread.sd:.1f})" if len(runs) > 1 else f"{spread.mean:.1f}"


def latency(measured: Measured) -> str:
    """A row for each target and cell: percentiles of streams."""
    marks = "/".join(f"P{percent}" for percent in PERCENTILES)
    head = ["target", "input x output", "runs", f"first token, ms: {marks}", f"a token, ms: {marks}"]
    head += [f"end to end, ms: {marks}", "very first request: first token, ms"]
    has_limit = "latency" in measured.read_bytes_per_s
    head += ["decoding: share of the limit"] if has_limit else []
    rows = []
    for (name, cell), runs in good_cells(measured.of("latency")).items():
        first_s = [run.ttft_s for run in runs if run.ttft_s is not None]
        token_s = [run.tpot_s for run in runs if run.tpot_s is not None]
        if not first_s or not token_s:
            continue
        how = "" if measured.facts[name].get("streams", True) else " (first token: a call for one)"
        row = [f"`{name}`{how}", str(cell), str(len(runs)), _marks(first_s)]
        row += [_marks(token_s, 2), _marks([run.seconds for run in runs]), _first(measured, name)]
        share = _decode_share(measured, name, cell, plain.median(token_s))
        rows.append([*row, share] if has_limit else row)
    return table(head, rows)


def _first(measured: Measured, name: str) -> str:
    found = [run.ttft_s for run in measured.runs if run.is_first and run.target == name and run.ttft_s]
    return ", ".join(f"{1000 * one:.0f}" for one in found) or NOTHING


def _decode_share(measured: Measured, name: str, cell: Cell, token_s: float) -> str:
    whole_s, first_s = (
        _limit_s(measured, "latency", name, one) for one in (cell, Cell(cell.input_tokens, 1))
    )
    if whole_s is None or first_s is None or cell.output_tokens == 1:
        return NOTHING
    return f"{(whole_s - first_s) / (token_s * (cell.output_tokens - 1)):.2f}"


def throughput(measured: Measured) -> str:
    """A row for each level: pace, percentiles and refusals of every target."""
    levels, names = good_levels(measured.of("throughput")), measured.targets("throughput")
    tried = {(run.target, run.cell, run.level) for run in measured.of("throughput")}
    head = ["requests", "input x output"]
    for name in names:
        head += [f"`{name}`: tokens/s", "P50 / P99, s", "refused"]
    rows = []
    for cell, level in sorted({(run.cell, run.level) for run in measured.of("throughput")}):
        row = [str(level), str(cell)]
        for name in names:
            key = (name, cell, level)
            missing = [FAILED if key in tried else NOTHING, NOTHING, NOTHING]
            row += _level(levels[key]) if key in levels else missing
        rows.append(row)
    return table(head, rows)


def _level(runs: Sequence[Run]) -> list[str]:
    seconds = [run.seconds for run in runs if not run.is_refused]
    refused = len(runs) - len(seconds)
    marks = [f"{statistics.percentile(seconds, percent):.2f}" for percent in (50, 99) if seconds]
    pace = f"{statistics.level_tokens_per_s(runs):.0f}"
    return [pace, " / ".join(marks) or NOTHING, f"{refused} of {len(runs)}" if refused else "0"]


def best_levels(measured: Measured, wanted: Wanted) -> str:
    """A row for each target: what a million tokens cost with the number of clients that is best."""
    rows = []
    for name in measured.targets("throughput"):
        paces = {
            level: statistics.level_tokens_per_s(runs)
            for (target, _, level), runs in good_levels(measured.of("throughput")).items()
            if target == name and level.concurrency is not None
        }
        if paces and name in wanted.usd_per_hour:
            level = max(paces, key=paces.__getitem__)
            rows.append([f"`{name}`", str(level), f"{paces[level]:.0f}", _usd(wanted, name, paces[level])])
    return table(["target", "requests", "tokens/s", "USD a million tokens"], rows) if rows else ""


def starts(measured: Measured) -> str:
    """A row for each target: seconds from start to ready, as medians and the slowest."""
    parts = list(dict.fromkeys(part for one in measured.starts for part in one["parts"]))
    loading = list(dict.fromkeys(part for one in measured.starts for part in one["loading"]))
    head = ["target", "starts", "ready, s: P50", "most", *(part.replace("_", " ") for part in parts)]
    rows = []
    for name in dict.fromkeys(one["target"] for one in measured.starts):
        own = [one for one in measured.starts if one["target"] == name]
        seconds = [one["seconds"] for one in own]
        row = [f"`{name}`", str(len(own)), f"{plain.median(seconds):.1f}", f"{max(seconds):.1f}"]
        row += [_median(own, "parts", part) for part in parts]
        rows.append([*row, *(_median(own, "loading", part) for part in loading)])
    return table([*head, *(f"load: {part.replace('_', ' ')}" for part in loading)], rows)


def memory(measured: Measured) -> str:
    """A row for each target: the most memory while starting and under load."""
    kinds = {"gpu_bytes": "GPU", "pss_bytes": "host (shared pages once)", "rss_bytes": "host (RSS)"}
    head = ["target", *(f"{what}, GiB: {when}" for what in kinds.values() for when in ("start", "load"))]
    rows = [
        [
            f"`{one['target']}`{' (GPU: all of it)' if one['load'].get('gpu_counts') == 'whole GPU' else ''}",
            *(_gib(one[when].get(kind)) for kind in kinds for when in ("start", "load")),
        ]
        for one in measured.memory
    ]
    return table(head, rows)


def failures(measured: Measured) -> str:
    """A row for each cell or level in which something went wrong; no average includes those."""
    rows = []
    for failed in bad_cells(measured.runs):
        one = failed[0]
        requests = str(one.level) if one.load == "throughput" else NOTHING
        problem = " ".join(str(one.problem).replace("|", "\\|").split())
        rows.append([one.load, f"`{one.target}`", str(one.cell), requests, str(len(failed)), problem])
    head = ["load", "target", "input x output", "requests", "failed runs", "the first one"]
    return table(head, rows) if rows else ""


def _median(own: Sequence[Mapping[str, Mapping[str, float]]], kind: str, part: str) -> str:
    found = [one[kind][part] for one in own if part in one[kind]]
    return f"{plain.median(found):.2f}" if found else NOTHING


def _marks(seconds: Sequence[float], digits: int = 1) -> str:
    found = [1000 * statistics.percentile(seconds, percent) for percent in PERCENTILES]
    return " / ".join(f"{value:.{digits}f}" for value in found)


def _percent_range(shares: Sequence[float]) -> str:
    if not shares:
        return NOTHING
    low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
    return low if low == high else f"{low} to {high}"


def _usd(wanted: Wanted, name: str, pace: float) -> str:
    if name not in wanted.usd_per_hour:
        return NOTHING
    price = wanted.usd_per_hour[name]
    return f"{statistics.usd_per_million_tokens(price, pace):.2f} (at {price:g} an hour)"


def _gib(value: float | None) -> str:
    return NOTHING if value is None else f"{value / GIB:.2f}"
