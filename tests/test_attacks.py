"""The attacks of `attacks` on a service from outside."""

from typing import Any

import pytest

import attacks
from attacks import Attack, Target
from support.server import Server


def cheap(front: str) -> list[Any]:
    return [pytest.param(one, id=one.name) for one in attacks.ALL if one.is_cheap and front in one.fronts]


def run_on(server: Server, attack: Attack) -> None:
    attack.run(Target("127.0.0.1", server.port, server.process.pid))


@pytest.mark.parametrize("server", ["mms-hf"], indirect=True)
@pytest.mark.parametrize("attack", cheap("mms"))
def test_what_takes_no_time_on_the_model_server(server: Server, attack: Attack) -> None:
    run_on(server, attack)


@pytest.mark.parametrize("server", ["http-fused"], indirect=True)
@pytest.mark.parametrize("attack", cheap("http"))
def test_what_takes_no_time_on_the_http_front(server: Server, attack: Attack) -> None:
    run_on(server, attack)


@pytest.mark.outside
@pytest.mark.parametrize("attack", attacks.ALL, ids=lambda attack: attack.name)
def test_on_a_running_service(request: pytest.FixtureRequest, attack: Attack) -> None:
    """All of them on the service that ``--attack`` names; see `attacks.target.Target.of`."""
    url = request.config.getoption("--attack")
    if url is None:
        pytest.skip("--attack names no service")
    target = Target.of(url, request.config.getoption("--attack-pid"))
    if target.front not in attack.fronts:
        pytest.skip(f"not promised by {target.front}")
    attack.run(target)
