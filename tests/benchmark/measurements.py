"""Small files of results, whose sums can be done by hand."""

from pathlib import Path
from typing import Any

from gptj_serve.benchmark.results import ResultsFile, Run

HARDWARE = {"gpu": "Card A, 1.0, 10 MiB", "cpu": "c", "num_cpus": 2, "memory_gib": 1.0}
MODEL = {
    "fingerprint": "f",
    "num_layers": 2,
    "width": 10,
    "inner": 40,
    "vocab_size": 100,
    "max_context": 2048,
    "num_weights": 4000,
}


def head(**changes: Any) -> dict[str, Any]:
    """The head of a file; two servers."""
    facts = {"kind": "spawn", "engine": "hf", "settings": {"GPTJ_FRONT": "http"}, "weight_bytes": 8000}
    return {
        "when": "2026-01-01T00:00:00+00:00",
        "commit": "c0ffee",
        "hardware": HARDWARE,
        "versions": {"python": "3.12"},
        "model": MODEL,
        "seed": 0,
        "read_bytes_per_s": 60_000.0,
        "targets": {"slow": facts, "fast": {**facts, "engine": "fused"}},
        "skipped": {},
    } | changes


def run(target: str, seconds: float, number: int = 0, **changes: Any) -> Run:
    """A request of 10 tokens in, 20 out, of the grid."""
    fields: dict[str, Any] = {
        "load": "grid",
        "target": target,
        "input_tokens": 10,
        "output_tokens": 20,
        "number": number,
        "started_s": 1000.0 + number,
        "seconds": seconds,
        "status": 200,
        "prompt_tokens": 10,
        "completion_tokens": 20,
    }
    return Run(**(fields | changes))


def written(path: Path, runs: list[Run], **changes: Any) -> Path:
    """A file with these runs."""
    with ResultsFile.open(path, head(**changes)) as results:
        results.add(runs)
    return path
