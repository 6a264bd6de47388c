"""The Hugging Face Hub on loopback, as far as its client needs it to fetch a repository's files."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from support.loopback_server import serving
from support.server import WAIT_TIMEOUT_S

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A hub with one repository, ``org/tiny-j``, which has one revision, ``float16``.

    Attributes:
        url: For ``HF_ENDPOINT``.
        files: The repository's, by name.
        refuses: Status and headers of every answer, if nobody is let in.
        cut_at: Once, a file's transfer ends after so many bytes.
        holds: Once, a file's transfer halts after its first bytes until this is set.
        fetched: Files that were asked for, each with the byte it was to begin at.
    """

    url: str
    files: Mapping[str, bytes]
    refuses: tuple[int, Mapping[str, str]] | None = None
    cut_at: int | None = None
    holds: threading.Event | None = None
    fetched: list[tuple[str, int]] = field(default_factory=list)


@contextlib.contextmanager
def running(files: Mapping[str, bytes]) -> Iterator[Hub]:
    """A hub on a free port."""
    hub = Hub("", files)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if hub.refuses:
                self._answer(*hub.refuses)
            elif path == "/api/models/org/tiny-j/revision/float16":
                siblings = [{"rfilename": name, "size": len(data)} for name, data in hub.files.items()]
                self._json({"id": "org/tiny-j", "sha": COMMIT, "siblings": siblings})
            elif path == f"/api/models/org/tiny-j/tree/{COMMIT}":
                sizes = {name: len(data) for name, data in hub.files.items()}
                self._json(
                    [{"type": "file", "path": name, "size": sizes[name], "oid": "0"} for name in sizes]
                )
            elif path.startswith(("/org/tiny-j/resolve/float16/", f"/org/tiny-j/resolve/{COMMIT}/")):
                self._file(path.rpartition("/")[2])
            elif path.startswith("/api/models/org/tiny-j/"):
                self._answer(404, {"X-Error-Code": "RevisionNotFound"})
            else:
                self._answer(401, {"X-Error-Code": "RepoNotFound"})

        def _file(self, name: str) -> None:
            data = hub.files[name]
            begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            headers = {
                "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                "X-Repo-Commit": COMMIT,
                "Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}",
            }
            if self.command == "GET":
                hub.fetched.append((name, begin))
            self._answer(206 if begin else 200, headers, data[begin:])

        def _json(self, document: object) -> None:
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

        def _answer(self, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if hub.cut_at is not None and len(body) > hub.cut_at:
                body, hub.cut_at = body[: hub.cut_at], None
            if hub.holds and "ETag" in headers:
                self.wfile.write(body[:100])
                body = body[100:]
                hub.holds.wait(WAIT_TIMEOUT_S)
            with contextlib.suppress(OSError):  # the client has gone
                self.wfile.write(body)

    with serving(Handler) as server:
        hub.url = server.url
        yield hub
