"""A service that is reached by its URL: on this machine, or wherever a container runs."""

import contextlib
import http.client
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from gptj_serve.aws.ask.answer import refused
from gptj_serve.aws.ask.question import Question
from gptj_serve.aws.common.errors import CommandError, UsageError

PATH = "/invocations"
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+(/.*)?")
_PIECE_BYTES = 1 << 16


def parse_url(target: str) -> SplitResult | None:
    """The URL that a target stands for; None if it is an endpoint's name. ``host:port`` counts as a URL.

    Raises:
        UsageError: The URL cannot work.
    """
    text = f"http://{target}" if _HOST_AND_PORT.fullmatch(target) else target
    if "://" not in text:
        return None
    url = urlsplit(text)
    try:
        is_right = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:
        is_right = False
    if not is_right:
        raise UsageError(f"{target}: must be a URL such as http://127.0.0.1:8080, or an endpoint's name")
    return url


@dataclass(frozen=True, slots=True)
class UrlService:
    """A service at a URL.

    Attributes:
        url: The service's address; without a path, requests go to `PATH`.
        timeout_s: Seconds without a byte after which the service counts as gone.
    """

    url: SplitResult
    timeout_s: float

    @property
    def path(self) -> str:
        """The path that requests go to."""
        path = self.url.path if self.url.path not in ("", "/") else PATH
        return f"{path}?{self.url.query}" if self.url.query else path

    def ask(self, question: Question) -> bytes:
        """The whole answer.

        Raises:
            Refused: The service answered with an error.
            CommandError: The service cannot be reached or does not answer.
        """
        return b"".join(self.stream(question))

    def stream(self, question: Question) -> Generator[bytes, None, None]:
        """The answer piece by piece, as it comes; raises as `ask`. Closing it cancels the request."""
        kind = http.client.HTTPSConnection if self.url.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.url.hostname or "", self.url.port, timeout=self.timeout_s)
        with contextlib.closing(connection), self._explained():
            connection.request("POST", self.path, question.body, {"Content-Type": question.content_type})
            with connection.getresponse() as response:
                if response.status != 200:
                    after = response.getheader("Retry-After")
                    hint = f"try again in {after} s" if after else None
                    raise refused(response.status, response.read(), hint)
                while piece := response.read1(_PIECE_BYTES):
                    yield piece
                # the length counts down, but `read1` takes an early end for the end of the answer
                if response.length:
                    raise http.client.IncompleteRead(b"", response.length)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        where = f"{self.url.scheme}://{self.url.netloc.rpartition('@')[2]}"
        try:
            yield
        except TimeoutError:
            raise CommandError(
                f"{where} sent nothing for {self.timeout_s:g} s", "--timeout takes more seconds"
            ) from None
        except ConnectionRefusedError:
            raise CommandError(
                f"nothing listens at {where}", "scripts/run-local starts the service on this machine"
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise CommandError(f"{where}: {error or type(error).__name__}") from None
