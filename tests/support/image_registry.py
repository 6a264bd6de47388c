"""A registry on loopback: the one that Docker's own images come from (Debian: docker-registry)."""

import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

CONFIG = """
version: 0.1
log: {{fields: {{}}}}
storage: {{filesystem: {{rootdirectory: "{folder}/data"}}}}
http: {{addr: "127.0.0.1:0"}}
"""
PASSWORD = "a-password-for-tests"
USER = "AWS:$2b$04$7ZTpR/PDY0bLcKKIYfY8FOLdL33f/l2wd30eSZEbmFQedmc6mroPm\n"
"""A user of ECR's name with `PASSWORD`, as a htpasswd file has it."""
AUTH = """
auth: {{htpasswd: {{realm: test, path: "{folder}/htpasswd"}}}}
"""


class Registry:
    """One that listens on a port of its own.

    Args:
        folder: For its data and its log.
        users: Lines of a htpasswd file (bcrypt); without any, everybody may push.
    """

    def __init__(self, folder: Path, users: str | None = None) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            pytest.skip("there is no docker-registry (Debian: apt-get install docker-registry)")
        config = CONFIG + (AUTH if users else "")
        (folder / "config.yml").write_text(config.format(folder=folder))
        (folder / "htpasswd").write_text(users or "")
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [program, "serve", str(folder / "config.yml")], stdout=log, stderr=subprocess.STDOUT
            )
        self.address = f"127.0.0.1:{self._port()}"

    @property
    def requests(self) -> list[tuple[str, str]]:
        """Method and path of each request so far."""
        return re.findall(r'"([A-Z]+) (/\S+) HTTP', self._log.read_text())

    @property
    def num_written(self) -> int:
        """Requests so far that sent something."""
        return sum(method in ("POST", "PATCH", "PUT") for method, _ in self.requests)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(10)

    def _port(self, timeout_s: float = 10) -> int:
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self._log.read_text())
            if found:
                return int(found[1])
            time.sleep(0.02)
        self.close()
        raise AssertionError(self._log.read_text())
