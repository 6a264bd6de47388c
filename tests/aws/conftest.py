"""AWS as a server on loopback, and commands that are run against it."""

import os
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from gptj_serve.aws.common.clients import Aws, connect
from support.aws import killed_commands, moto_components, moto_sagemaker, moto_server
from support.aws.docker_engine import Engine
from support.aws.killed_commands import Killer
from support.aws.run_commands import NOWHERE, fake_environment
from support.server import WAIT_TIMEOUT_S


@pytest.fixture(scope="session", autouse=True)
def _share_sessions() -> Iterator[None]:
    """Each command makes a session, which takes longer than its calls, and reads botocore's data anew."""
    really = boto3.Session
    loader = really()._session.get_component("data_loader")
    sessions: dict[object, boto3.Session] = {}

    def session(**options: Any) -> boto3.Session:
        settings = [item for item in sorted(os.environ.items()) if item[0].startswith("AWS_")]
        wanted = (*settings, *options.items())
        if wanted not in sessions:
            sessions[wanted] = really(**options)
            sessions[wanted]._session.register_component("data_loader", loader)
        return sessions[wanted]

    with pytest.MonkeyPatch.context() as patches:
        patches.setattr("boto3.Session", session)
        yield


@pytest.fixture(autouse=True)
def _no_real_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is set up for: made-up credentials, and nothing answers unless `aws` is used."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in fake_environment(NOWHERE).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """Where moto's server listens: real HTTP, one for all tests of a process."""
    with moto_server.running() as url:
        yield url


@pytest.fixture(scope="session")
def clients() -> dict[str, dict[str, Any]]:
    """Clients of moto's server, by region: to make one takes longer than all of a command's calls."""
    return defaultdict(dict)


@pytest.fixture
def aws(moto_url: str, clients: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Aws:
    """An account with nothing in it; commands, in this process or their own, reach the same."""
    reset = urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=WAIT_TIMEOUT_S).close()
    moto_sagemaker.reset()
    moto_components.failures.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_url)
    monkeypatch.setattr(Aws, "_clients", property(lambda self: clients[self.region]))
    return connect()


@pytest.fixture(scope="session")
def killer() -> Iterator[Killer]:
    """Runs commands that die."""
    with killed_commands.running() as running:
        yield running


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """A Docker engine without an image."""
    return Engine(tmp_path / "engine", monkeypatch)
