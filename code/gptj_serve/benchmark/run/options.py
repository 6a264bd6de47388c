"""Reads and checks what ``scripts/benchmark run`` was asked for."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptj_serve import demo
from gptj_serve.benchmark.peers import PEERS
from gptj_serve.benchmark.results import FIRST_CELL, Cell, Level
from gptj_serve.benchmark.run.command_line import LOADS, TOGETHER_BATCH_SIZE, make_parser
from gptj_serve.benchmark.targets.spawn import Spawn
from gptj_serve.settings import ENGINES


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    Attributes:
        loads: Which of `LOADS` are made, in their order.
        urls, endpoints: Addresses and SageMaker endpoints by the target's name.
        spawns: Servers to start.
        together: All servers are up at once.
        rounds: How often servers take turns otherwise.
        model: The directory of the model that they serve.
        model_as_given: How the user wrote it; None if nobody did.
        cells: The sizes of the grid's requests.
        runs: How often each cell is measured, by target.
        latency_cells: The sizes of streams.
        latency_runs: How often each of them is measured, by target.
        levels: How the requests of throughput come.
        throughput_cell: The size of each of them.
        per_client: How many requests each client makes.
        open_s: How long requests arrive at a rate, in seconds.
        starts: How many starts are measured.
        forget_kernels: Each start compiles kernels that are not prebuilt.
        seed: The seed of prompts, orders and arrivals.
        out: The file of results.
        retry_failed: Failed runs are made again.
        timeout_s: How long an answer may take, in seconds.
        work: Where peers keep converted models.
        overrides: Given in place of what would be found out: ``commit``, ``hardware``, ``read_bytes_per_s``.
        skipped: Why targets that were asked for are left out, by name.
    """

    loads: tuple[str, ...]
    urls: Mapping[str, str]
    endpoints: Mapping[str, str]
    spawns: tuple[Spawn, ...]
    together: bool
    rounds: int
    model: Path | None
    model_as_given: str | None
    cells: tuple[Cell, ...]
    runs: Mapping[str, int]
    latency_cells: tuple[Cell, ...]
    latency_runs: Mapping[str, int]
    levels: tuple[Level, ...]
    throughput_cell: Cell
    per_client: int
    open_s: float
    starts: int
    forget_kernels: bool
    seed: int
    out: Path
    retry_failed: bool
    timeout_s: float
    work: Path
    overrides: Mapping[str, Any]
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """How many positions the longest request takes."""
        cells = (*self.cells, *self.latency_cells, self.throughput_cell, FIRST_CELL)
        return max(cell.input_tokens + cell.output_tokens for cell in cells)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all targets."""
        return (*self.urls, *self.endpoints, *(spawn.name for spawn in self.spawns))


def parse(arguments: Sequence[str] | None) -> Options:
    """Read and check the command line; wrong usage ends the program with 2."""
    parser = make_parser()
    args = parser.parse_args(arguments)
    spawns = [Spawn(name, engine) for name, engine in _named(parser, "--spawn", args.spawn)]
    urls = dict(_named(parser, "--url", args.url))
    endpoints = dict(_named(parser, "--endpoint", args.endpoint))
    names = [*urls, *endpoints, *(spawn.name for spawn in spawns)]
    _check_targets(parser, args, names, spawns)
    cells = tuple(Cell(i, o) for i in args.inputs for o in args.outputs)
    options = Options(
        loads=tuple(load for load in LOADS if load in args.load),
        urls=urls,
        endpoints=endpoints,
        spawns=_with_settings(parser, spawns, args.set),
        together=args.together,
        rounds=args.rounds,
        model=_model(args.model, spawns),
        model_as_given=None if args.model is None else str(args.model),
        cells=cells,
        runs=_by_target(parser, "--runs", args.runs, names, 20),
        latency_cells=tuple(args.latency_cells),
        latency_runs=_by_target(parser, "--latency-runs", args.latency_runs, names, 100),
        levels=(
            *(Level(concurrency=one) for one in args.concurrency),
            *(Level(rate=one) for one in args.rates),
        ),
        throughput_cell=args.throughput_cell,
        per_client=args.requests_per_client,
        open_s=args.open_seconds,
        starts=args.starts,
        forget_kernels=args.build_kernels,
        seed=args.seed,
        out=args.out,
        retry_failed=args.retry_failed,
        timeout_s=args.timeout_s,
        work=args.work.absolute(),
        overrides=_overrides(args),
    )
    return _bounded(parser, options) if options.together else options


def _check_targets(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: list[str], spawns: Sequence[Spawn]
) -> None:
    if not names:
        parser.error("a target is needed: --url, --endpoint or --spawn")
    if twice := {name for name in names if names.count(name) > 1}:
        parser.error(f"{', '.join(sorted(twice))}: a name for two targets; NAME= before one gives it another")
    for spawn in spawns:
        if spawn.engine not in (*ENGINES, *PEERS):
            parser.error(f"--spawn {spawn.engine}: must be one of {', '.join((*ENGINES, *PEERS))}")
    if args.together and any(spawn.engine in PEERS for spawn in spawns):
        parser.error("--together: peers take turns, they leave no memory to others")
    only_spawn = {"load", "memory"} & set(args.load)
    if only_spawn and not spawns:
        parser.error(f"--load {', '.join(sorted(only_spawn))}: only what --spawn starts can be looked at so")


def _model(given: Path | None, spawns: Sequence[Spawn]) -> Path | None:
    # servers are started in another directory
    if given is not None:
        return given.expanduser().absolute()
    return demo.MODEL_DIR if spawns else None


def _with_settings(
    parser: argparse.ArgumentParser, spawns: Sequence[Spawn], raw: Sequence[str]
) -> tuple[Spawn, ...]:
    if raw and not spawns:
        parser.error("--set: only what --spawn starts gets an environment")
    settings: dict[str, dict[str, str]] = {spawn.name: {} for spawn in spawns}
    for one in raw:
        key, equals, value = one.partition("=")
        name, colon, own_key = key.rpartition(":")
        if not equals or (colon and name not in settings):
            parser.error(f"--set {one}: must be KEY=VALUE, or NAME:KEY=VALUE with a name of --spawn")
        for target in [name] if colon else settings:
            settings[target][own_key] = value
    return tuple(replace(spawn, settings=settings[spawn.name]) for spawn in spawns)


def _bounded(parser: argparse.ArgumentParser, options: Options) -> Options:
    """Bound each server, as none of several may take all that is left of one GPU's memory."""
    bounds = {"GPTJ_MAX_BATCH_SIZE": TOGETHER_BATCH_SIZE, "GPTJ_MAX_CONTEXT": str(options.longest)}
    given = {name: value for name, value in os.environ.items() if name in bounds}
    for spawn in options.spawns:
        if "throughput" in options.loads and "GPTJ_MAX_BATCH_SIZE" not in {**given, **spawn.settings}:
            parser.error(
                f"--together gives each engine GPTJ_MAX_BATCH_SIZE={TOGETHER_BATCH_SIZE}: no throughput is "
                "measured so; leave it out, or --set GPTJ_MAX_BATCH_SIZE"
            )
    spawns = (replace(spawn, settings={**bounds, **given, **spawn.settings}) for spawn in options.spawns)
    return replace(options, spawns=tuple(spawns))


def _overrides(args: argparse.Namespace) -> dict[str, Any]:
    read_bytes_per_s = None if args.bandwidth_gb_s is None else args.bandwidth_gb_s * 1e9
    found = {"commit": args.commit, "hardware": args.hardware, "read_bytes_per_s": read_bytes_per_s}
    return {name: value for name, value in found.items() if value is not None}


def _named(parser: argparse.ArgumentParser, option: str, raw: Sequence[Any]) -> list[tuple[str, str]]:
    """Names and values; a value without a name is its own name (a URL's name is its host and port)."""
    found = []
    for one in raw if option != "--spawn" else [text for texts in raw for text in texts]:
        name, equals, value = one.partition("=")
        if not equals or "/" in name:
            name, value = one.partition("://")[2].strip("/") or one, one
        if not name or not value:
            parser.error(f"{option} {one}: must be NAME=VALUE or a value alone")
        found.append((name, value))
    return found


def _by_target(
    parser: argparse.ArgumentParser, option: str, raw: Sequence[str], names: Sequence[str], default: int
) -> dict[str, int]:
    found = dict.fromkeys(names, default)
    # what is said of one target comes last and counts more
    for one in sorted(raw, key=lambda text: "=" in text):
        name, equals, number = one.rpartition("=")
        if (equals and name not in found) or not number.isascii() or not number.isdigit() or int(number) < 1:
            parser.error(
                f"{option} {one}: must be a whole number from 1, with NAME= before it for one target"
            )
        found |= {name: int(number)} if equals else dict.fromkeys(found, int(number))
    return found
