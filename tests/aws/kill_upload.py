"""Runs ``upload-model`` and kills it (SIGKILL) at a certain point.

Usage: python kill_upload.py request|shard N PART_BYTES ARGUMENT...

Before the Nth request that changes something in S3 is sent, or before the Nth shard is written.
"""

import itertools
import os
import signal
import sys
from typing import Any

from botocore.httpsession import URLLib3Session

from gptj_serve.aws import model_upload, upload_model


def die_at(owner: Any, name: str, last: int, counts: Any = lambda *_: True) -> None:
    """Kill this process before a method is called the Nth time with arguments that count."""
    really, numbers = getattr(owner, name), itertools.count(1)

    def counted(*arguments: Any, **named: Any) -> Any:
        if counts(*arguments) and next(numbers) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*arguments, **named)

    setattr(owner, name, counted)


def changes_something(request: Any) -> bool:
    """A request to S3 that does not only look; whose account it is is asked with POST / as well."""
    return request.method in ("PUT", "POST", "DELETE") and not request.url.endswith("/")


def main(where: str, last: int, part_bytes: int, arguments: list[str]) -> int:
    """Run the command until it dies; its exit code if it does not."""
    model_upload.PART_BYTES = part_bytes
    if where == "shard":
        from gptj_serve.aws import conversion

        die_at(conversion, "_write_shard", last)
    else:
        die_at(URLLib3Session, "send", last, lambda _, sent: changes_something(sent))
    return upload_model.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
