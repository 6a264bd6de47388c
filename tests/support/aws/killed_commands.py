"""Processes that run a command and kill themselves (SIGKILL) at a certain point.

They are forks of one process that has imported all and read botocore's data: that takes far longer than what
a command does. This module is its program as well: for each `Kill` on stdin, as a line of JSON, it says on
stdout how it ended.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.httpsession import URLLib3Session

from gptj_serve.aws import push, upload_model
from gptj_serve.aws.common import plan
from gptj_serve.aws.image import docker
from gptj_serve.aws.model import transfer


@dataclass(frozen=True)
class Kill:
    """A command and its end.

    Attributes:
        where: ``step``: before a call of AWS, or a change through docker. ``request``: before one that
            changes something in S3 is sent. ``shard``: before one is written.
        number: Which of them, 1 is the first.
        arguments: The command: its module and its arguments.
        part_bytes: Of multipart uploads.
    """

    where: str
    number: int
    arguments: tuple[str, ...]
    part_bytes: int = 5 << 20
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


class Killer:
    """The process that forks."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, where: str, number: int, *arguments: str) -> tuple[int, str]:
        """Run a command until it dies; its exit code (below 0: by which signal), and its stdout."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(Kill(where, number, arguments))) + "\n")
        self._process.stdin.flush()
        code, out = json.loads(self._process.stdout.readline())
        return code, out


@contextlib.contextmanager
def running() -> Iterator[Killer]:
    """A process that waits for commands to run."""
    code = str(Path(__file__).parents[3] / "code")
    with subprocess.Popen(
        [sys.executable, __file__],
        env={**os.environ, "PYTHONPATH": code},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Killer(process)
        assert process.stdin is not None
        process.stdin.close()


def die_at(owner: Any, name: str, numbers: Iterator[int], last: int, counts: Any = lambda *_: True) -> None:
    """Kill this process before a method is called the Nth time with arguments that count."""
    really = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        if counts(*arguments) and next(numbers) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*arguments, **named)

    setattr(owner, name, counted)


def changes_something(_: object, request: Any) -> bool:
    """A request to S3 that does not only look; whose account it is is asked with POST / as well."""
    return request.method in ("PUT", "POST", "DELETE") and not request.url.endswith("/")


def place(where: str) -> list[tuple[Any, ...]]:
    """The methods that `Kill.where` means: owner, name, and which calls count."""
    if where == "step":
        return [(plan.Action, "apply"), (docker.Docker, "run")]
    if where == "request":
        return [(URLLib3Session, "send", changes_something)]
    from gptj_serve.aws.model import conversion  # takes longer than all else: it needs PyTorch

    return [(conversion, "_write_shard")]


def act(kill: Kill) -> int:
    """Run the command until it dies; its exit code if it does not."""
    transfer.PART_BYTES = kill.part_bytes
    numbers = itertools.count(1)
    for owner, name, *counts in place(kill.where):
        die_at(owner, name, numbers, kill.number, *counts)
    module, *arguments = kill.arguments
    return int({"push": push, "upload_model": upload_model}[module].main(arguments))


def fork(kill: Kill) -> int:
    """Act in a process of its own; its exit code."""
    process_id = os.fork()
    if process_id == 0:
        os.environ.clear()
        os.environ.update(kill.environment)
        os._exit(act(kill))
    return os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1])


def _read_models_once() -> None:
    """Read botocore's descriptions of the services, for the sessions of all forks."""

    class Session(boto3.Session):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._session.register_component("data_loader", loader)

    first = boto3.Session(region_name="eu-west-1", aws_access_key_id="-", aws_secret_access_key="-")
    loader = first._session.get_component("data_loader")
    for service in ("ecr", "s3", "sts"):
        first.client(service)
    boto3.Session = Session


def main() -> None:
    """Do what stdin says until it ends."""
    _read_models_once()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out:
            os.dup2(out.fileno(), 1)
            code = fork(Kill(**json.loads(line)))
            out.seek(0)
            print(json.dumps([code, out.read().decode()]), file=answers, flush=True)


if __name__ == "__main__":
    main()
