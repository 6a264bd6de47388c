"""Compares HTTP servers below the front's application: the attacks, and what a streamed token costs.

``python tests/attacks/servers.py [NAME…]``; those that are not ours need ``pip install granian hypercorn``.
Each runs the same application over an engine without a model (``scripts/benchmark front``).
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent))

from attacks.__main__ import run
from attacks.target import Target
from gptj_serve import run_dir
from gptj_serve.benchmark import fake_service, front
from gptj_serve.serving.http import front as http_front
from gptj_serve.serving.http.admission import Admission
from gptj_serve.serving.http.app import build
from gptj_serve.serving.http.generate import Shared
from gptj_serve.serving.http.link import EngineLink
from gptj_serve.serving.http.metrics import Metrics
from gptj_serve.serving.service import Service
from gptj_serve.serving.text import Tokenizer
from gptj_serve.settings import Settings

OURS = "ours"


async def _uvicorn(app: Any, port: int, http: Any) -> None:
    import uvicorn

    config = uvicorn.Config(
        app, port=port, http=http, loop="none", lifespan="off", ws="none", log_config=None
    )
    await uvicorn.Server(config).serve()


async def _hypercorn(app: Any, port: int) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    await serve(app, config)


async def _granian(app: Any, port: int) -> None:
    from granian.constants import Interfaces
    from granian.http import HTTP1Settings
    from granian.server.embed import Server

    http1 = HTTP1Settings(header_read_timeout=10_000, max_buffer_size=64 * 1024)
    server = Server(
        app, port=port, interface=Interfaces.ASGI, websockets=False, backpressure=1024, http1_settings=http1
    )
    await server.serve()


SERVERS: dict[str, Callable[[Any, int], Any]] = {
    "uvicorn-httptools": lambda app, port: _uvicorn(app, port, "httptools"),
    "uvicorn-h11": lambda app, port: _uvicorn(app, port, "h11"),
    "hypercorn": _hypercorn,
    "granian": _granian,
}


async def serve(name: str, model_dir: Path) -> None:
    """The front's application under another server than its own."""
    settings = Settings.from_env(os.environ)
    link = await EngineLink.connect(run_dir.engine_socket(Path(os.environ[run_dir.ENV_NAME])))
    max_bytes = settings.max_payload_mb * 1024 * 1024
    service = Service(link, Tokenizer.load(model_dir), max_bytes, settings.request_timeout_s, streaming=True)
    metrics = Metrics(link.info, lambda: link.stats)
    app = build(Shared(settings, link, service, Admission(320), metrics), None)
    await SERVERS[name](app, settings.port)


def compare(name: str, attacks: list[str]) -> None:
    """Print what came of the attacks on a server, and what its streams cost."""
    prepare = http_front.prepare

    def other(*args: Any) -> Any:
        command, env = prepare(*args)
        return [sys.executable, __file__, "--serve", name, *command[3:]], env

    print(f"== {name}", flush=True)
    with mock.patch.object(http_front, "prepare", prepare if name == OURS else other):
        with (
            tempfile.TemporaryDirectory() as folder,
            fake_service.running("http", front.TOKENS_PER_S, Path(folder, "log")) as service,
        ):
            run(Target("127.0.0.1", service.port, service.front_process.pid), attacks)
        try:
            streams = front.measure("http", front.Plan(num_calls=20, num_rounds=2))["streams"]
        except (ConnectionError, RuntimeError) as error:
            print("    no streams:", error)
        else:
            print(json.dumps(streams), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="tests/attacks/servers.py")
    parser.add_argument("names", nargs="*", help=f"of {OURS}, {', '.join(SERVERS)} (default: all)")
    parser.add_argument("--attacks", nargs="*", default=[], help="only these")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--model-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--go-fd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        os.read(args.go_fd, 1)
        start = asyncio.run if args.serve == "granian" else uvloop.run  # it runs its own loop's threads
        start(serve(args.serve, args.model_dir))
        return
    for package in ("uvicorn", "h11", "httptools", "hypercorn", "granian"):
        print(package, importlib.metadata.version(package))
    for name in args.names or [OURS, *SERVERS]:
        compare(name, args.attacks)


if __name__ == "__main__":
    main()
