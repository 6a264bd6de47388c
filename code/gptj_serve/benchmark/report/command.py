"""``scripts/benchmark report``: writes one page of tables and figures from files of results."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gptj_serve.benchmark import results
from gptj_serve.benchmark.report import figures, tables
from gptj_serve.benchmark.report.measured import Measured, merge
from gptj_serve.benchmark.report.tables import Wanted
from gptj_serve.errors import StartupError

BASELINES = ("hf", "deepspeed")
"""Targets are compared with the first of these that was measured, unless another is named."""

Figure = tuple[str, str, Callable[[Measured], str | None]]
FIGURES: dict[str, tuple[Figure, ...]] = {
    "grid": (("latency", "Mean latency by output length", figures.latency_by_length),),
    "latency": (("distribution", "Distribution of latencies", figures.distribution),),
    "throughput": (("throughput", "Tokens/s by number of clients", figures.tokens_by_concurrency),),
}
"""By load: the name of each figure's file, what it shows, and the function that draws it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/benchmark report", description=__doc__)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="files of results")
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="folder to write (report)"
    )
    parser.add_argument("--baseline", metavar="TARGET", help=f"compared with ({', else '.join(BASELINES)})")
    parser.add_argument(
        "--price-per-hour", action="append", default=[], metavar="[TARGET=]USD", help="of the machine"
    )
    args = parser.parse_args(arguments)
    try:
        groups = merge({path: results.read(path) for path in args.files})
        names = [name for measured in groups for name in measured.facts]
        if args.baseline is not None and args.baseline not in names:
            parser.error(f"--baseline {args.baseline}: must be one of {', '.join(names)}")
        prices = _prices(parser, args.price_per_hour, names)
        folders = [_folder(args.out, place) for place in range(len(groups))]
        pages = [_page(*pair, args, prices) for pair in zip(groups, folders, strict=True)]
        (args.out / "report.md").write_text("\n".join(pages))
    except StartupError as error:
        print(f"scripts/benchmark report: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"scripts/benchmark report: --out {args.out}: {error.strerror}", file=sys.stderr)
        return 1
    print(args.out / "report.md")
    return 0


def _prices(parser: argparse.ArgumentParser, raw: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    prices: dict[str, float] = {}
    for one in sorted(raw, key=lambda text: "=" in text):
        name, equals, text = one.rpartition("=")
        try:
            price = float(text)
        except ValueError:
            price = 0.0
        if not 0 < price < 1e6 or (equals and name not in names):
            allowed = "a number above 0, with TARGET= before it for one target"
            parser.error(f"--price-per-hour {one}: must be {allowed}")
        prices |= {name: price} if equals else dict.fromkeys(names, price)
    return prices


def _folder(out: Path, place: int) -> Path:
    """The folder for the figures of one kind of machine; those of the first one lie beside the page."""
    folder = out if place == 0 else out / f"machine-{place + 1}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _page(measured: Measured, folder: Path, args: argparse.Namespace, prices: dict[str, float]) -> str:
    """Write the figures about one kind of machine; returns its part of the page."""
    baseline = args.baseline or next((name for name in BASELINES if name in measured.targets("grid")), None)
    wanted = Wanted(baseline if baseline in measured.targets("grid") else None, prices)
    name = measured.hardware.get("target") or measured.hardware["gpu"].split(",")[0]
    title = name if name != "none" else measured.hardware["cpu"]
    lines = [f"# Measured on {title}", "", tables.surroundings(measured), ""]
    for load, heading, parts in _sections(measured, wanted):
        lines += [f"## {heading}", ""]
        for number, text, draw in FIGURES.get(load, ()):
            if (svg := draw(measured)) is not None:
                (folder / f"{number}.svg").write_text(svg)
                path = (folder / f"{number}.svg").relative_to(args.out)
                lines += [f"![{text}]({path})", ""]
        lines += [line for part in parts if part for line in (part, "")]
    return "\n".join(lines)


def _sections(measured: Measured, wanted: Wanted) -> Iterator[tuple[str, str, list[str]]]:
    """The load, heading and texts of each section about something that was measured."""
    if measured.of("grid"):
        note = f"{GRID_NOTE} {PRICE_NOTE}" if wanted.usd_per_hour else GRID_NOTE
        texts = [tables.grid_summary(measured, wanted), note, tables.grid_cells(measured)]
        yield "grid", "Whole calls, one at a time", texts
    if measured.of("latency"):
        yield "latency", "Streams, one at a time", [tables.latency(measured)]
    if measured.of("throughput"):
        texts = [tables.throughput(measured), LEVELS_NOTE, tables.best_levels(measured, wanted)]
        yield "throughput", "Many at once", texts
    if measured.starts:
        yield "load", "From start to ready", [tables.starts(measured), START_NOTE]
    if measured.memory:
        yield "memory", "Memory at most", [tables.memory(measured)]
    if text := tables.failures(measured):
        yield "failures", "What went wrong, and is in no average", [text]


GRID_NOTE = """\
*tokens/s* is output tokens over the whole call, prompt and HTTP included; mean and standard deviation are
over all runs. The reduction compares mean calls cell by cell; its mean and standard deviation are over cells.
The limit reads weights and cache once a token at the speed of the memory."""

PRICE_NOTE = "What a million tokens cost is the price of the time that all these calls took."

LEVELS_NOTE = "Times are those of answered requests; a dash is what was not run."

START_NOTE = """\
Medians, in seconds, and the slowest start: a machine's first one may compile kernels. *other* is what no log
record names: processes starting, checks, memory being taken. What the load says of itself overlaps: reading,
converting and uploading run at the same time."""
