"""From starting ``serve`` to ready, and when each phase on the way was over.

Usage: python -m gptj_serve.benchmark.start --model DIR --engine ENGINE [--runs N] [--build-kernels] --out F

``--build-kernels`` gives every run an empty folder for kernels that are built at start; those that were
built ahead of time, as in the image, are used all the same.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from gptj_serve.benchmark.latency import surroundings

PHASES = ("starting", "engine_chosen", "kernels_loaded", "model_loaded", "engine_ready", "ready")
PARTS = {"imports": "imported", "kernels": "kernels_loaded", "load": "model_loaded", "warm_up": "warmed_up"}
"""Names of the parts of a start, and the events whose ``seconds`` they are."""
PORT = 8097


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="gptj_serve.benchmark.start", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model directory")
    parser.add_argument("--engine", required=True, help="value for GPTJ_ENGINE")
    parser.add_argument("--runs", type=int, default=3, help="starts to measure (default 3)")
    parser.add_argument(
        "--build-kernels", action="store_true", help="forget kernels built at an earlier start"
    )
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = {**surroundings(), "engine": args.engine, "build_kernels": args.build_kernels}
    report["starts"] = [start_once(args.model, args.engine, args.build_kernels) for _ in range(args.runs)]
    args.out.write_text(json.dumps(report, indent=1))
    print(json.dumps(report["starts"], indent=1))


def start_once(model: Path, engine: str, build_kernels: bool) -> dict[str, Any]:
    """Start ``serve``, wait until it is ready, end it; returns what `phases` makes of its log."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "GPTJ_MODEL_DIR": str(model), "GPTJ_ENGINE": engine, "GPTJ_PORT": str(PORT)}
        if build_kernels:
            env |= {"TORCH_EXTENSIONS_DIR": folder, "XDG_CACHE_HOME": folder}
        command = [sys.executable, "-m", "gptj_serve"]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as serve:
            assert serve.stdout is not None
            lines = []
            for line in serve.stdout:
                lines.append(line)
                if '"event": "ready"' in line:
                    serve.send_signal(signal.SIGTERM)
        if serve.returncode:
            raise SystemExit(f"serve ended with {serve.returncode}:\n{''.join(lines[-5:])}")
    return phases(lines)


def phases(log: Iterable[str]) -> dict[str, Any]:
    """Seconds from the first line of a log to the event that ends each phase, and what took how long."""
    records = [json.loads(line) for line in log if line.startswith("{")]
    first = datetime.fromisoformat(records[0]["time"])
    found: dict[str, Any] = {}
    for record in records:
        if record.get("event") in PHASES:
            found[record["event"]] = (datetime.fromisoformat(record["time"]) - first).total_seconds()
        if record.get("event") == "kernels_loaded":
            found.setdefault("kernels", record["origin"])  # found again, they are cached
    return found | {"parts": parts(records)}


def parts(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Seconds by what they were spent on: those that the log names, the front, and all the rest."""
    took = {name: _sum(records, event) for name, event in PARTS.items()}
    ready = {event: _sum(records, event) for event in ("engine_ready", "ready")}
    if not all(ready.values()):
        return took
    ended = {record["event"]: record["time"] for record in records if record.get("event") in ready}
    front = datetime.fromisoformat(ended["ready"]) - datetime.fromisoformat(ended["engine_ready"])
    took["front"] = front.total_seconds()
    return took | {"other": round(ready["ready"] - sum(took.values()), 3)}


def _sum(records: Sequence[dict[str, Any]], event: str) -> float:
    seconds: Iterable[float] = (record["seconds"] for record in records if record.get("event") == event)
    return round(sum(seconds), 3)


if __name__ == "__main__":
    main()
