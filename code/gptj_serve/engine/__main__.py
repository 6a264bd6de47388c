"""The engine process: loads the model, says that it is ready, and serves the socket until it is drained.

Usage: python -m gptj_serve.engine --socket PATH --ready-fd N

One JSON line goes to the descriptor: {"status": "ready", "model": {...}} or {"status": "failed",
"message": "..."}. The launcher's signal (`children.END_SIGNAL`) drains it. Exit codes: 0 drained, 1 not
started, 70 the engine cannot go on.
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptj_serve import logs
from gptj_serve.children import END_SIGNAL
from gptj_serve.engine.start_log import logged_import
from gptj_serve.errors import StartupError
from gptj_serve.logs import log_event
from gptj_serve.settings import Settings

logger = logging.getLogger("gptj_serve.engine")

EXIT_NOT_STARTED = 1
EXIT_BACKEND_DEAD = 70


def main() -> int:
    """Run the engine; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gptj_serve.engine")
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    args = parser.parse_args()
    started_s = time.monotonic()
    settings = Settings.from_env(os.environ)
    logs.configure("engine", settings.log_level)
    try:
        engine, info = _start(settings, args.socket)
    except StartupError as error:
        _say(args.ready_fd, {"status": "failed", "message": str(error)})
        return EXIT_NOT_STARTED
    except Exception as error:
        message = "the engine could not start"
        log_event(logger, "engine_not_started", message, level=logging.ERROR, error=error)
        _say(args.ready_fd, {"status": "failed", "message": f"{type(error).__name__}: {error}"})
        return EXIT_NOT_STARTED
    gc.collect()
    gc.freeze()  # what is loaded stays: looking at it would hold up a step by a tenth of a second
    seconds = round(time.monotonic() - started_s, 3)
    log_event(logger, "engine_ready", "the engine is ready", seconds=seconds)
    _say(args.ready_fd, {"status": "ready", "model": asdict(info)})
    return _serve(engine)


def _start(settings: Settings, socket_path: Path) -> tuple[Any, Any]:
    # PyTorch takes seconds to import: cheap checks of the model come first
    from gptj_serve.models.model_dir import find_checkpoint

    checkpoint = find_checkpoint(settings.model_dir, settings.model_as_given, settings.model_option)
    for note in checkpoint.notes:
        log_event(logger, "model_note", note, level=logging.WARNING)
    with logged_import("PyTorch"):
        from gptj_serve.engine.build import build_engine

    return build_engine(settings, checkpoint, socket_path)


def _serve(engine: Any) -> int:
    signal.signal(END_SIGNAL, lambda *_: engine.drain())
    try:
        engine.run()
    except Exception as error:  # an error that no step survives, or a bug outside of steps
        message = f"the engine cannot go on: {str(error) or repr(error)}"
        log_event(logger, "backend_dead", message, level=logging.ERROR, error=error)
        with contextlib.suppress(Exception):  # this sends the last answers, if they can still be sent
            engine.close()
        return EXIT_BACKEND_DEAD
    engine.close()
    return 0


def _say(ready_fd: int, message: dict[str, Any]) -> None:
    os.write(ready_fd, json.dumps(message).encode() + b"\n")
    os.close(ready_fd)


if __name__ == "__main__":
    # the interpreter is not shut down: with a broken CUDA context, that can hang or crash
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
