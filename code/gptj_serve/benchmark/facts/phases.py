"""Reads the log of a start: when each phase was over, and what took how long."""

import json
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

PHASES = ("starting", "engine_chosen", "kernels_loaded", "model_loaded", "engine_ready", "ready")
PARTS = {"imports": "imported", "kernels": "kernels_loaded", "load": "model_loaded", "warm_up": "warmed_up"}
"""Names of the parts of a start, and the log events whose ``seconds`` they are."""


def records(log: Iterable[str]) -> list[dict[str, Any]]:
    """The records of a log; lines that are no records are left out."""
    return [json.loads(line) for line in log if line.startswith("{")]


def phases(log: Iterable[str]) -> dict[str, Any]:
    """Seconds from the first line of a log to the event that ends each phase, and what took how long.

    Returns:
        Seconds by event; ``kernels``: where they came from; ``parts``: see `parts`; ``loading``: what
        the load says of itself, in seconds (reading, converting and uploading overlap).
    """
    known = records(log)
    found: dict[str, Any] = {}
    loading: dict[str, float] = {}
    for record in known:
        event = record.get("event")
        if event in PHASES:
            found[event] = _seconds_between(known[0], record)
        if event == "kernels_loaded":
            found["kernels"] = record["origin"]
        if event == "model_loaded":
            loading = {name[:-8]: value for name, value in record.items() if name.endswith("_seconds")}
    return found | {"parts": parts(known), "loading": loading}


def parts(known: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How many seconds each part of a start took: those that the log names, the front, and the rest."""
    took = {name: _sum(known, event) for name, event in PARTS.items()}
    ready = {record["event"]: record for record in known if record.get("event") in ("engine_ready", "ready")}
    if len(ready) < 2:
        return took
    took["front"] = _seconds_between(ready["engine_ready"], ready["ready"])
    return took | {"other": round(ready["ready"]["seconds"] - sum(took.values()), 3)}


def _sum(known: Sequence[dict[str, Any]], event: str) -> float:
    seconds: Iterable[float] = (record["seconds"] for record in known if record.get("event") == event)
    return round(sum(seconds), 3)


def _seconds_between(sooner: dict[str, Any], later: dict[str, Any]) -> float:
    took = datetime.fromisoformat(later["time"]) - datetime.fromisoformat(sooner["time"])
    return round(took.total_seconds(), 3)
