"""Runs of several files, put together where they may be compared: on the same hardware, of the same model."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptj_serve.benchmark.results import Cell, Level, Results, Run

LOADS = ("grid", "latency", "throughput", "load", "memory")


@dataclass(slots=True)
class Measured:
    """What was measured on one kind of machine.

    Attributes:
        hardware: What it is.
        model: Its facts; None where they are not known.
        heads: Of the files, by their names.
        facts: Of targets, by name.
        runs: All requests, under the names that the report uses.
        starts, memory: The same of these.
        read_bytes_per_s: Of the GPU's memory, if it was measured or given.
    """

    hardware: Mapping[str, Any]
    model: Mapping[str, Any] | None
    heads: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    read_bytes_per_s: float | None = None

    def of(self, load: str) -> list[Run]:
        """The runs of a load, those to be averaged and those not; no very first requests."""
        return [run for run in self.runs if run.load == load and not run.is_first]

    def targets(self, load: str) -> list[str]:
        """Who has runs of a load, in the order of the files."""
        found = {run.target for run in self.of(load)}
        return [name for name in self.facts if name in found]


def merge(files: Mapping[Path, Results]) -> list[Measured]:
    """Put files together, those of different hardware or models apart.

    A target that several files have under one name, measured in the same way, is one target; measured in
    different ways (another commit, version or setting) it is told apart by the file's name in each load that
    more than one of them has.
    """
    groups: dict[str, Measured] = {}
    members: defaultdict[str, list[tuple[str, Results]]] = defaultdict(list)
    for path, results in files.items():
        key = json.dumps([results.head["hardware"], results.head["model"], _remote(results)], sort_keys=True)
        groups.setdefault(key, Measured(_hardware(results), results.head["model"]))
        members[key].append((path.name.removesuffix(".json"), results))
    for key, named in members.items():
        _fill(groups[key], named)
    return list(groups.values())


def _hardware(results: Results) -> Mapping[str, Any]:
    remote = _remote(results)
    return {"target": ", ".join(remote)} if remote else results.head["hardware"]


def _remote(results: Results) -> list[str]:
    """What servers run on that the measuring machine has not started."""
    found = (facts.get("hardware") for facts in results.head["targets"].values())
    return sorted({str(one) for one in found if one is not None})


def _fill(measured: Measured, named: Sequence[tuple[str, Results]]) -> None:
    variants: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for _, results in named:
        for load, target in _measurements(results):
            variants[load, target].add(_variant(results, target))
    for stem, results in named:
        measured.heads[stem] = results.head

        def name(load: str, target: str, stem: str = stem, head: Mapping[str, Any] = results.head) -> str:
            found = target if len(variants[load, target]) == 1 else f"{target} [{stem}]"
            measured.facts.setdefault(found, head["targets"].get(target, {}))
            return found

        for target in results.head["targets"]:  # their order is that of the command line
            for load in LOADS:
                if (load, target) in variants:
                    name(load, target)
        measured.runs += [replace(run, target=name(run.load, run.target)) for run in results.runs]
        measured.starts += [{**one, "target": name("load", one["target"])} for one in results.starts]
        measured.memory += [{**one, "target": name("memory", one["target"])} for one in results.memory]
        measured.read_bytes_per_s = measured.read_bytes_per_s or results.head.get("read_bytes_per_s")


def _measurements(results: Results) -> set[tuple[str, str]]:
    runs = {(run.load, run.target) for run in results.runs}
    starts = {("load", one["target"]) for one in results.starts}
    return runs | starts | {("memory", one["target"]) for one in results.memory}


def _variant(results: Results, target: str) -> str:
    facts = results.head["targets"].get(target, {})
    ways = [results.head["commit"], results.head["versions"], facts.get("settings"), facts.get("engine")]
    return json.dumps(ways, sort_keys=True)


def good_cells(runs: Sequence[Run]) -> dict[tuple[str, Cell], list[Run]]:
    """Runs by target and cell, without the cells in which anything went wrong."""
    return {key: found for key, found in _by_cell(runs).items() if not any(run.has_failed for run in found)}


def bad_cells(runs: Sequence[Run]) -> list[tuple[str, str, Cell, int, str]]:
    """Load, target, cell, number of failed runs and what the first one said, of each cell that has one."""
    found: dict[tuple[str, str, Cell], list[Run]] = defaultdict(list)
    for run in runs:
        if run.has_failed:
            found[run.load, run.target, run.cell].append(run)
    return [(*key, len(failed), str(failed[0].problem)) for key, failed in found.items()]


def good_levels(runs: Sequence[Run]) -> dict[tuple[str, Cell, Level], list[Run]]:
    """Throughput runs by target, cell and level, without the levels in which anything went wrong."""
    levels: defaultdict[tuple[str, Cell, Level], list[Run]] = defaultdict(list)
    for run in runs:
        levels[run.target, run.cell, run.level].append(run)
    return {key: found for key, found in levels.items() if not any(run.has_failed for run in found)}


def _by_cell(runs: Sequence[Run]) -> dict[tuple[str, Cell], list[Run]]:
    cells: defaultdict[tuple[str, Cell], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run.target, run.cell].append(run)
    return cells
