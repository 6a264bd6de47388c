"""Merges the runs of several files where they may be compared: same hardware and same model."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from gptj_serve.benchmark.results import Cell, Level, ResultsFile, Run

Key = TypeVar("Key")
LOADS = ("grid", "latency", "throughput", "load", "memory")


@dataclass(slots=True)
class Measured:
    """What was measured on one kind of machine.

    Attributes:
        hardware: The machine.
        model: The model's facts; None where they are not known.
        heads: The heads of the files, by the files' names.
        facts: The facts of targets, by name.
        runs: All requests, under the names that the report uses.
        starts, memory: All starts and peaks of memory, under the same names.
        read_bytes_per_s: How fast the GPU's memory is read, by load, since each file has its own figure. Of
            several files the highest counts, so that no share of the limit is flattered.
    """

    hardware: Mapping[str, Any]
    model: Mapping[str, Any] | None
    heads: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    facts: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    read_bytes_per_s: dict[str, float] = field(default_factory=dict)

    def of(self, load: str) -> list[Run]:
        """The runs of a load, failed ones included, without the very first requests to servers."""
        return [run for run in self.runs if run.load == load and not run.is_first]

    def targets(self, load: str) -> list[str]:
        """The targets that have runs of a load, in the order of the files."""
        found = {run.target for run in self.of(load)}
        return [name for name in self.facts if name in found]


def merge(files: Mapping[Path, ResultsFile]) -> list[Measured]:
    """Merge files; what was measured on different machines or of different models stays apart.

    A target that several files have under one name, measured in the same way, is one target; measured in
    different ways (another commit, version or setting) it is told apart by the file's name in each load that
    more than one of them has.
    """
    groups: dict[str, Measured] = {}
    members: defaultdict[str, list[tuple[str, ResultsFile]]] = defaultdict(list)
    for stem, results in zip(_names(list(files)), files.values(), strict=True):
        for hardware, part in _by_machine(results):
            key = json.dumps([hardware, results.head["model"]], sort_keys=True)
            groups.setdefault(key, Measured(hardware, results.head["model"]))
            members[key].append((stem, part))
    for key, named in members.items():
        _fill(groups[key], named)
    return list(groups.values())


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of files; files that share a name keep their folders."""
    stems = [path.name.removesuffix(".json") for path in paths]
    return [
        stem if stems.count(stem) == 1 else str(path.with_name(stem))
        for stem, path in zip(stems, paths, strict=True)
    ]


def _by_machine(results: ResultsFile) -> list[tuple[Mapping[str, Any], ResultsFile]]:
    """A file's measurements by the machine that the servers run on: the one that measured, or another."""
    machines: dict[str | None, list[str]] = {}
    for name, facts in results.head["targets"].items():
        machines.setdefault(facts.get("hardware"), []).append(name)
    parts = []
    for other, names in machines.items():
        part = results.of(names)
        if other is not None:  # this machine's memory says nothing about that one
            part.head |= {"read_bytes_per_s": None, "skipped": {}}
        if len(machines) == 1 or not part.is_empty:
            parts.append((results.head["hardware"] if other is None else {"target": other}, part))
    return parts


def _fill(measured: Measured, named: Sequence[tuple[str, ResultsFile]]) -> None:
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

        own = _measurements(results)
        for target in results.head["targets"]:  # they are in the order of the command line
            for load in LOADS:
                if (load, target) in own:
                    name(load, target)
        # a very first request belongs to the streams that follow it, if any do
        runs = [run for run in results.runs if (run.load, run.target) in own]
        measured.runs += [replace(run, target=name(run.load, run.target)) for run in runs]
        measured.starts += [{**one, "target": name("load", one["target"])} for one in results.starts]
        measured.memory += [{**one, "target": name("memory", one["target"])} for one in results.memory]
        if speed := results.head.get("read_bytes_per_s"):
            for load, _ in own:
                measured.read_bytes_per_s[load] = max(speed, measured.read_bytes_per_s.get(load, 0.0))


def _measurements(results: ResultsFile) -> set[tuple[str, str]]:
    """Pairs of loads and targets for which something was measured."""
    runs = {(run.load, run.target) for run in results.runs if not run.is_first}
    starts = {("load", one["target"]) for one in results.starts}
    return runs | starts | {("memory", one["target"]) for one in results.memory}


def _variant(results: ResultsFile, target: str) -> str:
    facts = results.head["targets"].get(target, {})
    ways = [results.head["commit"], results.head["versions"], facts.get("settings"), facts.get("engine")]
    return json.dumps(ways, sort_keys=True)


def good_cells(runs: Iterable[Run]) -> dict[tuple[str, Cell], list[Run]]:
    """Runs by target and cell, without the cells in which anything went wrong."""
    return _all_good(_grouped(runs, lambda run: (run.target, run.cell)))


def good_levels(runs: Iterable[Run]) -> dict[tuple[str, Cell, Level], list[Run]]:
    """Throughput runs by target, cell and level, without the levels in which anything went wrong."""
    return _all_good(_grouped(runs, lambda run: (run.target, run.cell, run.level)))


def bad_cells(runs: Iterable[Run]) -> list[list[Run]]:
    """The failed runs of each cell, or level, that has one."""
    failed = (run for run in runs if run.has_failed)
    return [*_grouped(failed, lambda run: (run.load, run.target, run.cell, run.level)).values()]


def _grouped(runs: Iterable[Run], key: Callable[[Run], Key]) -> dict[Key, list[Run]]:
    groups: defaultdict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[key(run)].append(run)
    return groups


def _all_good(groups: Mapping[Key, list[Run]]) -> dict[Key, list[Run]]:
    return {key: runs for key, runs in groups.items() if not any(run.has_failed for run in runs)}
