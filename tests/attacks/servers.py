"""Compares HTTP servers below the front's application: the attacks, and what a streamed token costs.

``python tests/attacks/servers.py [NAME…]``; those that are not ours need ``pip install granian hypercorn``.
Each runs the same application over an engine without a model (``scripts/benchmark front``).
"""

import argparse
import asyncio
import functools
import importlib.metadata
import json
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
from gptj_serve.benchmark.front import fake_service
from gptj_serve.benchmark.front import overhead as front
from gptj_serve.serving.http import __main__ as front_process
from gptj_serve.serving.http import front as http_front
from gptj_serve.serving.http.app import build
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


async def serve(name: str, settings: Settings, directory: Path, *parts: Any) -> None:
    """The front's application under another server than its own."""
    app = build(await front_process.connect(settings, directory, *parts))
    await SERVERS[name](app, settings.port)


def compare(name: str, attacks: list[str], has_streams: bool) -> None:
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
        if not has_streams:
            return
        try:
            streams = front.measure("http", front.Plan(num_calls=20, num_rounds=2))["streams"]
        except (ConnectionError, RuntimeError) as error:
            print("    no streams:", error)
        else:
            print(json.dumps(streams), flush=True)


def serve_instead(name: str) -> int:
    """Be the front's process, but for the server; the exit code."""
    run_loop = asyncio.run if name == "granian" else uvloop.run  # it has its own way with threads
    with (
        mock.patch.object(front_process, "serve", functools.partial(serve, name)),
        mock.patch.object(front_process.uvloop, "run", run_loop),
    ):
        return front_process.main()


def main() -> None:
    """Command line."""
    if sys.argv[1:2] == ["--serve"]:
        _, name, *sys.argv[1:] = sys.argv[1:]
        sys.exit(serve_instead(name))
    parser = argparse.ArgumentParser(prog="tests/attacks/servers.py")
    parser.add_argument("names", nargs="*", help=f"of {OURS}, {', '.join(SERVERS)} (default: all)")
    parser.add_argument("--no-streams", action="store_true", help="attacks alone")
    parser.add_argument("--attacks", nargs="*", default=[], help="only these")
    args = parser.parse_args()
    for package in ("uvicorn", "h11", "httptools", "hypercorn", "granian"):
        print(package, importlib.metadata.version(package))
    for name in args.names or [OURS, *SERVERS]:
        compare(name, args.attacks, has_streams=not args.no_streams)


if __name__ == "__main__":
    main()
