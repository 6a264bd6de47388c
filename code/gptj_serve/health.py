"""Checks whether the service on this machine is ready; the image's HEALTHCHECK runs it.

Usage: python -m gptj_serve.health

It asks ``GET /ping`` where the environment says that ``serve`` listens. Exit codes: 0 ready, 1 not.
"""

import contextlib
import http.client
import os
import sys

from gptj_serve.errors import StartupError
from gptj_serve.settings import Settings

TIMEOUT_S = 2.0


def main() -> int:
    """Print the answer in one line; returns the exit code."""
    try:
        settings = Settings.from_env(os.environ)
    except StartupError as error:
        print(error)
        return 1
    connection = http.client.HTTPConnection(settings.local_host, settings.port, timeout=TIMEOUT_S)
    with contextlib.closing(connection):
        try:
            connection.request("GET", "/ping")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            print(f"no answer on {settings.local_host}:{settings.port} ({error})")
            return 1
    print(f"/ping answers {status}")
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
