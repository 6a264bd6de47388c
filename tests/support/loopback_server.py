"""HTTP servers for tests, on a free port of the loopback interface."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LoopbackServer(ThreadingHTTPServer):
    """A server that logs no requests, and no client that hangs up: it may, at any moment."""

    daemon_threads = True

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show what the handler raised, but for a connection that was lost."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **attributes: Any) -> Iterator[LoopbackServer]:
    """A server, which is ended at exit.

    Args:
        handler: Answers the requests.
        attributes: What it finds at its `server`.
    """
    quiet = type(handler.__name__, (handler,), {"log_message": lambda *_: None})
    with LoopbackServer(("127.0.0.1", 0), quiet) as server:
        vars(server).update(attributes)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
