"""The HTTP front's process.

Usage: python -m gptj_serve.serving.http --go-fd N

``serve``, which names its private directory in the environment, starts this while the engine still loads. The
front only listens when a byte comes on the descriptor, so if it answers, the engine can answer.
"""

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn
import uvloop

from gptj_serve import logs, run_dir
from gptj_serve.children import END_SIGNAL
from gptj_serve.serving.forks import ForkServer
from gptj_serve.serving.http.admission import Admission
from gptj_serve.serving.http.app import build
from gptj_serve.serving.http.body import Bodies
from gptj_serve.serving.http.generate import Shared
from gptj_serve.serving.http.link import EngineLink
from gptj_serve.serving.http.metrics import Metrics
from gptj_serve.serving.http.parsing import Parser, work
from gptj_serve.serving.http.places import raise_file_limit
from gptj_serve.serving.http.protocol import SOCKET_BUFFER_BYTES, LimitedProtocol
from gptj_serve.serving.service import Service
from gptj_serve.serving.start import start_failures
from gptj_serve.serving.templates.client import TemplateClient
from gptj_serve.serving.text import Tokenizer
from gptj_serve.serving.tokenizing import PreparedTokenizer
from gptj_serve.settings import Settings


async def connect(settings: Settings, directory: Path, tokenizer: Tokenizer, forks: ForkServer) -> Shared:
    """Make what the application works with; the engine must be ready."""
    link = await EngineLink.connect(run_dir.engine_socket(directory))
    max_bytes = settings.max_payload_mb * 1024 * 1024
    service = Service(
        link, tokenizer, max_bytes, settings.request_timeout_s, streaming=True, max_queue=settings.max_queue
    )
    return Shared(
        settings=settings,
        link=link,
        service=service,
        admission=Admission(link.info.max_batch_size + settings.max_queue),
        metrics=Metrics(link.info, lambda: link.stats),
        parser=Parser(service, forks, TemplateClient(run_dir.template_socket(directory))),
        bodies=Bodies(max_bytes),
        warm_up_key=run_dir.warm_up_key(directory),
    )


async def serve(settings: Settings, directory: Path, tokenizer: Tokenizer, forks: ForkServer) -> None:
    """Answer requests until the launcher's signal comes; the engine must be ready."""
    shared = await connect(settings, directory, tokenizer, forks)
    config = uvicorn.Config(
        build(shared),
        host=settings.host,
        port=settings.port,
        http=LimitedProtocol,
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=settings.idle_timeout_s,
        timeout_graceful_shutdown=1,
    )
    raise_file_limit()
    gc.collect()
    gc.freeze()  # what is loaded stays, so collections need not look at it while tokens wait
    listener = config.bind_socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)  # connections inherit it
    server = uvicorn.Server(config)
    asyncio.get_running_loop().add_signal_handler(END_SIGNAL, setattr, server, "should_exit", True)
    await server.serve([listener])
    await shared.link.close()


def main() -> int:
    """Load what the front needs, wait until the engine is ready, then run; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gptj_serve.serving.http")
    parser.add_argument("--go-fd", type=int, required=True)
    args = parser.parse_args()
    settings = Settings.from_env(os.environ)
    logs.configure("front", settings.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    directory = Path(os.environ[run_dir.ENV_NAME])
    with start_failures(directory):
        tokenizer = Tokenizer.of(PreparedTokenizer.load(run_dir.tokenizer(directory)))
        template = TemplateClient(run_dir.template_socket(directory))
        forks = ForkServer(work(settings, tokenizer, template))
        if os.read(args.go_fd, 1):  # otherwise, the launcher is gone
            uvloop.run(serve(settings, directory, tokenizer, forks))
    return 0


if __name__ == "__main__":
    sys.exit(main())
