"""Draws the report's figures as SVG: legible on white and on dark, and without telling colours apart.

Nothing is filled behind them; text and axes are a grey that stands out from both. Each target has a colour, a
marker, dashes, and its name beside its line. The colours are Okabe and Ito's, the pale ones darker and the
dark one paler for the same reason.
"""

import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, ScalarFormatter

from gptj_serve.benchmark.report import statistics
from gptj_serve.benchmark.report.measured import Measured, good_cells, good_levels
from gptj_serve.benchmark.results import Cell, Run

INK = "#7a7a7a"
COLOURS = ("#1f86c9", "#d55e00", "#009e73", "#c8679d", "#b98500", "#8c6bd8")
ENGINES = ("fused", "deepspeed", "hf", "vllm", "transformers-compiled", "ctranslate2")
"""These engines have the colour, marker and dashes of their place; other targets get those that are left."""
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1, 1.5)),
    (0, (6, 2, 1, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 3)),
)
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gptj",
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans", "sans-serif"],
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2,
    "lines.markersize": 6,
}
LABEL_GAP = 0.075
"""The gap between two names at the ends of lines, as a part of the height of the axes."""

USUAL = (1, 2, 5)
"""The digits that numbers on a logarithmic axis begin with."""

WIDE = 4.0
"""Values that differ by more than this factor get a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Look:
    """How one target is drawn."""

    colour: str
    marker: str
    dashes: Any


def looks(measured: Measured) -> dict[str, Look]:
    """Each target's look: an engine's own in every report, else one that no engine of this report has."""
    places: dict[str, int] = {}
    for name, facts in measured.facts.items():
        engine = facts.get("engine", name)
        if engine in ENGINES and ENGINES.index(engine) not in places.values():
            places[name] = ENGINES.index(engine)
    free = itertools.cycle(sorted(set(range(len(COLOURS))) - set(places.values())) or range(len(COLOURS)))
    for name in measured.facts:
        if name not in places:
            places[name] = next(free)
    return {name: Look(COLOURS[place], MARKERS[place], DASHES[place]) for name, place in places.items()}


def _name_axis(axis: Axis, text: str) -> None:
    axis.set_label_text(f"{text}, log scale" if axis.get_scale() == "log" else text)


def latency_by_length(measured: Measured) -> str | None:
    """Mean whole call by output length, with a panel for each input length; None without a grid."""
    cells, names = good_cells(measured.of("grid")), measured.targets("grid")
    seconds = {name: statistics.mean_seconds(cells, name) for name in names}
    inputs = sorted({cell.input_tokens for found in seconds.values() for cell in found})
    if not inputs:
        return None
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(inputs), share_y=True)
        every = [value for found in seconds.values() for value in found.values()]
        for axes, input_tokens in zip(panels, inputs, strict=True):
            axes.set_title(f"{input_tokens} tokens in", fontsize=11)
            _name_axis(axes.xaxis, "tokens out")
            lines: dict[str, dict[float, float]] = {
                name: {
                    cell.output_tokens: mean_s
                    for cell, mean_s in seconds[name].items()
                    if cell.input_tokens == input_tokens
                }
                for name in names
            }
            _draw(axes, measured, lines, values=every, id=str(input_tokens))
            axes.xaxis.set_major_locator(FixedLocator(sorted({x for line in lines.values() for x in line})))
        if all(lines[name] for name in names if seconds[name]):
            _name_ends(panels[-1], measured, lines)
        else:  # a line that the last panel lacks would stay without its name
            _legend(figure, panels)
        _name_axis(panels[0].yaxis, "mean whole call, s")
        return _svg(figure)


def tokens_by_concurrency(measured: Measured) -> str | None:
    """Tokens/s by the number of clients; None where it was not measured."""
    levels = good_levels(run for run in measured.of("throughput") if run.concurrency is not None)
    if not levels:
        return None
    shown = next(iter(levels))[1]  # a pace with other lengths cannot be compared
    lines: dict[str, dict[float, float]] = {name: {} for name in measured.targets("throughput")}
    for (name, cell, level), runs in levels.items():
        if cell == shown:
            lines[name][level.concurrency or 0] = statistics.level_tokens_per_s(runs)
    with mpl.rc_context(STYLE):
        figure, (axes,) = _panels(1)
        every = [value for line in lines.values() for value in line.values()]
        axes.set_xscale("log", base=2)
        _draw(axes, measured, lines, values=every, id="throughput")
        _name_ends(axes, measured, lines)
        axes.xaxis.set_major_locator(FixedLocator(sorted({x for line in lines.values() for x in line})))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(_title(shown), fontsize=11)
        _name_axis(axes.xaxis, "clients")
        _name_axis(axes.yaxis, "tokens/s, all together")
        return _svg(figure)


def distribution(measured: Measured) -> str | None:
    """Which part of the streams took no longer than a time; None where they were not measured."""
    cells = good_cells(measured.of("latency"))
    if not cells:
        return None
    shown = next(iter(cells))[1]  # times of different cells cannot be compared
    runs = [run for (_, cell), found in cells.items() for run in found if cell == shown]
    names = [name for name in measured.targets("latency") if any(run.target == name for run in runs)]
    kinds = {"to the first token, ms": "ttft_s", "between tokens, ms": "tpot_s", "end to end, ms": "seconds"}
    with mpl.rc_context(STYLE):
        figure, panels = _panels(len(kinds), share_y=True)
        for place, (axes, (title, kind)) in enumerate(zip(panels, kinds.items(), strict=True)):
            values = {name: _milliseconds(runs, name, kind) for name in names}
            _steps(axes, measured, values, place)
            _name_axis(axes.xaxis, title)
        _name_axis(panels[0].yaxis, "part of the requests")
        panels[0].set_title(_title(shown), fontsize=11)
        _legend(figure, panels)  # the curves of like targets lie on each other: no room for names beside them
        return _svg(figure)


def _title(cell: Cell) -> str:
    return f"{cell.input_tokens} tokens in, {cell.output_tokens} out"


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """The names of all lines beside the panels, each once."""
    lines: dict[str, Artist] = {}
    for axes in panels:
        lines |= {name: line for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([*lines.values()], [*lines], loc="outside right upper", frameon=False)


def _milliseconds(runs: Sequence[Run], name: str, kind: str) -> list[float]:
    return sorted(1000 * found for run in runs if run.target == name and (found := getattr(run, kind)))


def _steps(axes: Axes, measured: Measured, values: Mapping[str, Sequence[float]], place: int) -> None:
    every = [value for found in values.values() for value in found]
    if every and max(every) > WIDE * min(every):
        axes.set_xscale("log")
        _readable(axes.xaxis)
    for name, found in values.items():
        look = looks(measured)[name]
        heights = [(number + 1) / len(found) for number in range(len(found))]
        (line,) = axes.step(
            found, heights, where="post", color=look.colour, linestyle=look.dashes, label=name
        )
        line.set_gid(f"series {place} {name}")
    axes.set_ylim(0, 1.02)
    axes.grid(True)


def _readable(axis: Axis, digits: Sequence[float] = USUAL) -> None:
    """Write plain numbers on a logarithmic axis, at these multiples of powers of ten."""
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _panels(number: int, *, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(6.4, 2.9 * number + 1.2), 3.8), layout="constrained")
    panels = figure.subplots(1, number, sharey=share_y, squeeze=False)
    return figure, list(panels[0])


def _draw(
    axes: Axes,
    measured: Measured,
    lines: Mapping[str, Mapping[float, float]],
    *,
    values: Sequence[float],
    id: str,
) -> None:
    """Draw a line for each target.

    Args:
        axes: Where to draw.
        measured: The looks are made from it.
        lines: Points by target.
        values: All values in the panels that share an axis.
        id: Part of the names of the SVG's elements.
    """
    if max(values) > WIDE * min(values):
        axes.set_yscale("log")
        # a short axis would have only two numbers; there is room for more beside an axis, not below one
        _readable(axes.yaxis, (1, 1.5, 2, 3, 5, 7) if max(values) < 10 * min(values) else USUAL)
    else:
        axes.set_ylim(0, 1.08 * max(values))
    for name, points in lines.items():
        if not points:
            continue
        look, (x, y) = looks(measured)[name], zip(*sorted(points.items()), strict=True)
        (line,) = axes.plot(x, y, color=look.colour, marker=look.marker, linestyle=look.dashes, label=name)
        line.set_gid(f"series {id} {name}")
    axes.grid(True, axis="y")


def _name_ends(axes: Axes, measured: Measured, lines: Mapping[str, Mapping[float, float]]) -> None:
    """Write each name beside the end of its line, at a distance from the others."""
    ends = {name: (max(points), points[max(points)]) for name, points in lines.items() if points}
    axes.get_ylim()  # sets the scale, which `transData` alone does not
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_axes.transform(end)[1]) for name, end in ends.items()}
    for name, height in _apart(heights).items():
        colour = looks(measured)[name].colour
        axes.text(1.03, height, name, transform=axes.transAxes, color=colour, va="center", clip_on=False)


def _apart(heights: Mapping[str, float]) -> dict[str, float]:
    """Move heights apart by as little as text beside text needs."""
    moved = dict(sorted(heights.items(), key=lambda item: item[1]))
    for _ in range(50):
        for low, high in itertools.pairwise(moved):
            missing = LABEL_GAP - (moved[high] - moved[low])
            if missing > 0:
                moved[low] -= missing / 2
                moved[high] += missing / 2
    return moved


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()
