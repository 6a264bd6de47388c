"""The file of results: every single run and where it was made. No interrupt can harm the file."""

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from gptj_serve.errors import StartupError

SCHEMA = 1
SAVE_INTERVAL_S = 1.0
REFUSED = (429, 503)
"""Statuses with which a server says that it has too much to do."""

SAME = ("commit", "hardware", "versions", "model", "seed")
"""Parts of a file's head that have to be the same for its runs to be comparable."""

HEAD: Mapping[str, Any] = {
    "when": str,
    "targets": dict,
    "commit": str,
    "hardware": dict,
    "versions": dict,
    "model": dict | None,
    "seed": int,
    "read_bytes_per_s": int | float | None,
}
"""Parts that every file's head has, and their types."""

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "starts": {"seconds": int | float, "parts": dict, "loading": dict},
    "memory": {"start": dict, "load": dict},
}
"""Parts that every start and every peak of memory has, and their types."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """The size of a request: tokens of its prompt and of its answer."""

    input_tokens: int
    output_tokens: int

    def __str__(self) -> str:
        return f"{self.input_tokens}x{self.output_tokens}"


FIRST_CELL = Cell(50, 50)
"""The size of the very first request to a server."""


@dataclass(frozen=True, slots=True)
class Level:
    """How requests come: from a number of clients that wait for their answers, or at a rate a second."""

    concurrency: int | None = None
    rate: float | None = None

    def __lt__(self, other: "Level") -> bool:
        return (self.rate or 0, self.concurrency or 0) < (other.rate or 0, other.concurrency or 0)

    def __str__(self) -> str:
        return f"{self.concurrency} at once" if self.rate is None else f"{self.rate:g} a second"


@dataclass(frozen=True, slots=True)
class Run:
    """One request, with the times that its client saw.

    Attributes:
        load: "grid", "latency" or "throughput".
        target: The target that answered.
        input_tokens, output_tokens: The lengths that were asked for.
        number: Counts the runs of a cell, or of a level.
        started_s: When it was sent, or should have been sent if that was earlier (seconds since 1970).
        seconds: Time from then to the whole answer.
        status: Status of the HTTP answer; 0 if there was none.
        ttft_s: Time from sending to the first token.
        tpot_s: Mean time between two tokens, from the first on.
        prompt_tokens, completion_tokens: The usage that the server reports.
        concurrency, rate: The `Level` of a throughput run.
        is_first: It is the very first request to a server.
        problem: Why it measures nothing: an error, or a wrong length.
    """

    load: str
    target: str
    input_tokens: int
    output_tokens: int
    number: int
    started_s: float
    seconds: float
    status: int
    ttft_s: float | None = None
    tpot_s: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    concurrency: int | None = None
    rate: float | None = None
    is_first: bool = False
    problem: str | None = None

    @property
    def cell(self) -> Cell:
        """The size that was asked for."""
        return Cell(self.input_tokens, self.output_tokens)

    @property
    def level(self) -> Level:
        """The level of a throughput run."""
        return Level(self.concurrency, self.rate)

    @property
    def is_refused(self) -> bool:
        """Whether the server had no room for it."""
        return self.status in REFUSED

    @property
    def has_failed(self) -> bool:
        """Whether it spoils its cell or level: an open loop may be refused, nothing else may go wrong."""
        return self.problem is not None and not (self.rate is not None and self.is_refused)


class ResultsFile(contextlib.AbstractContextManager["ResultsFile"]):
    """A file of results that is being written, made by `open`. Use it as a context manager.

    Attributes:
        head: Everything but the measurements.
        runs: The requests that were made.
        starts: What `gptj_serve.benchmark.facts.phases` found out about each start, with its ``target``.
        memory: Peaks of memory, each with its ``target``.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.head = head
        self.runs: list[Run] = []
        self.starts: list[dict[str, Any]] = []
        self.memory: list[dict[str, Any]] = []
        self._path = path
        self._saved_s = 0.0

    @staticmethod
    def open(path: Path, head: Mapping[str, Any], *, retry_failed: bool = False) -> "ResultsFile":
        """Begin a file, or continue one that is there.

        Args:
            path: The file.
            head: Has the keys of `SAME`, ``targets`` (facts by name) and more.
            retry_failed: Forget runs that failed, and levels in which one did, so that they are made again.

        Raises:
            StartupError: The file is no file of results, or was measured elsewhere or of something else; says
                what differs.
        """
        results = ResultsFile(path, {"schema": SCHEMA, **head})
        if path.exists() and not (old := read(path)).is_empty:
            _check_same(path, old.head, results.head)
            results.head["targets"] = _joined(old.head["targets"], head["targets"])
            results.head["when"] = old.head["when"]
            results.runs = _without_failures(old.runs) if retry_failed else old.runs
            results.starts, results.memory = old.starts, old.memory
        results.save()  # that it cannot be written is better known now than after an hour
        return results

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured yet."""
        return not (self.runs or self.starts or self.memory)

    def __exit__(self, *_: object) -> None:
        self.save()

    def of(self, targets: Sequence[str]) -> "ResultsFile":
        """The part about some of the targets, for reading only."""
        facts = {name: self.head["targets"][name] for name in targets}
        part = ResultsFile(self._path, {**self.head, "targets": facts})
        part.runs = [run for run in self.runs if run.target in targets]
        part.starts = [one for one in self.starts if one["target"] in targets]
        part.memory = [one for one in self.memory if one["target"] in targets]
        return part

    def add(self, runs: Iterable[Run]) -> None:
        """Keep runs; they are in the file at most a second later."""
        self.runs += runs
        if time.monotonic() - self._saved_s > SAVE_INTERVAL_S:
            self.save()

    def save(self) -> None:
        """Write the whole file anew, or leave it as it is.

        Raises:
            StartupError: It cannot be written.
        """
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            new.write_text(self._text())
            os.replace(new, self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            raise StartupError(f"--out {self._path}: {error.strerror}") from None
        self._saved_s = time.monotonic()

    def _text(self) -> str:
        """The file's JSON, with a line for each run."""
        lists = {
            "starts": self.starts,
            "memory": self.memory,
            "runs": [_without_defaults(run) for run in self.runs],
        }
        head = json.dumps(self.head, indent=1)[:-2]
        return head + "".join(f',\n "{name}": {_lines(values)}' for name, values in lists.items()) + "\n}\n"


def read(path: Path) -> ResultsFile:
    """Read a file of results.

    Raises:
        StartupError: It is none; says where it is wrong.
    """
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StartupError(f"{path}: no file of results ({error})") from None
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise StartupError(f"{path}: no file of results of schema {SCHEMA}")
    lists = {name: raw.pop(name, None) for name in ("runs", "starts", "memory")}
    _check_fields(path, raw, HEAD)
    if not all(isinstance(facts, dict) for facts in raw["targets"].values()):
        raise StartupError(f"{path}: 'targets' are no objects")
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise StartupError(f"{path}: {name!r} is no list of objects")
        for number, value in enumerate(values):
            _check_fields(path, value, FIELDS.get(name, {}), f"{name}[{number}] ")
            if value.get("target") not in raw["targets"]:
                raise StartupError(f"{path}: {name}[{number}] is of none of 'targets'")
    results = ResultsFile(path, raw)
    results.runs = [_run(path, number, one) for number, one in enumerate(lists["runs"])]
    results.starts, results.memory = lists["starts"], lists["memory"]
    return results


def _check_fields(path: Path, raw: Mapping[str, Any], kinds: Mapping[str, Any], where: str = "") -> None:
    for name, kind in kinds.items():
        if name not in raw:
            raise StartupError(f"{path}: {where}{name!r} is missing")
        if not isinstance(raw[name], kind):
            raise StartupError(f"{path}: {where}{name!r} is {raw[name]!r}")


def _run(path: Path, number: int, raw: Mapping[str, Any]) -> Run:
    hints = get_type_hints(Run)
    for name, value in raw.items():
        if name not in hints:
            raise StartupError(f"{path}: runs[{number}] has {name!r}, which is no field of a run")
        allowed = (int, float) if hints[name] in (float, float | None) else hints[name]
        if not isinstance(value, allowed):
            raise StartupError(f"{path}: runs[{number}].{name} is {value!r}")
    try:
        run = Run(**raw)
    except TypeError as error:
        raise StartupError(f"{path}: runs[{number}]: {error}") from None
    if run.seconds <= 0 and not run.has_failed:
        raise StartupError(f"{path}: runs[{number}].seconds is {run.seconds}: must be above 0")
    return run


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differing = [f"{name} ({old[name]} then, {new[name]} now)" for name in SAME if old[name] != new[name]]
    for name, facts in new["targets"].items():
        before = old["targets"].get(name, facts)
        differing += [
            f"{key} of {name} ({before.get(key)} then, {facts[key]} now)"
            for key in facts
            if key in before and before[key] != facts[key]
        ]
    if differing:
        raise StartupError(
            f"--out {path} was measured with another {', another '.join(differing)}: take a new file"
        )


def _joined(
    old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Merge facts of targets; what a server said of itself stays, as it may not be started this time."""
    return {name: {**old.get(name, {}), **new.get(name, {})} for name in {**old, **new}}


def _without_failures(runs: Sequence[Run]) -> list[Run]:
    """Leave out failed runs, and all runs of a level in which one failed: it is measured as a whole."""
    failed = {(run.target, run.cell, run.level) for run in runs if run.has_failed and run.level != Level()}
    return [run for run in runs if not run.has_failed and (run.target, run.cell, run.level) not in failed]


def _without_defaults(run: Run) -> dict[str, Any]:
    return {
        field.name: value for field in fields(Run) if (value := getattr(run, field.name)) != field.default
    }


def _lines(values: Sequence[Mapping[str, Any]]) -> str:
    return "[\n  " + ",\n  ".join(map(json.dumps, values)) + "\n ]" if values else "[]"
