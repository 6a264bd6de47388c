"""Runs the commands of ``gptj_serve.aws``: in a process of their own, as users do, or in this one."""

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from support.aws.permission_checks import watched
from support.server import ROOT, WAIT_TIMEOUT_S

NOWHERE = "http://127.0.0.1:9"
"""A port of this machine where nothing listens."""
ACCESS_KEY, SECRET_KEY = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
"""Credentials that AWS's documentation shows: no output may have them."""


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The result of a command that had ``--json`` and worked: stdout is one object and nothing else."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    def check(self) -> "Result":
        """What holds whatever a command did.

        Raises:
            AssertionError: It showed a traceback or a credential.
        """
        for text in (self.out, self.err):
            assert "Traceback" not in text, text
            assert ACCESS_KEY not in text, text
            assert SECRET_KEY not in text, text
        return self


def fake_environment(endpoint_url: str) -> dict[str, str]:
    """Variables that lead every AWS client to one place, past all that is configured on this machine."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }


def start(module: str, *arguments: str, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start a command in a process of its own; ``env`` is added to this process's."""
    argv = [sys.executable, "-m", f"gptj_serve.aws.{module}", *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT / "code"), **(env or {})}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        argv, env=variables, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
    )


def finish(process: "subprocess.Popen[str]", timeout_s: float = WAIT_TIMEOUT_S) -> Result:
    """Wait for a command that was started."""
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return Result(process.returncode, out, err).check()


def command(
    module: str, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = WAIT_TIMEOUT_S
) -> Result:
    """Run a command in a process of its own until it ends."""
    return finish(start(module, *arguments, env=env), timeout_s)


def call(module: str, *arguments: str) -> Result:
    """Run a command in this process: the same, but for signals and what happens while it is imported.

    Raises:
        AssertionError: Its IAM policies do not allow what it did, or it changed what is not ours.
    """
    main = importlib.import_module(f"gptj_serve.aws.{module}").main
    out, err = io.StringIO(), io.StringIO()
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with streams[0], streams[1], watched(module, arguments):
        code = main(list(arguments))
    return Result(code, out.getvalue(), err.getvalue()).check()
