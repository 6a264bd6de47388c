"""The attacks of `attacks` on a service from outside."""

import pytest

import attacks
from attacks import Attack, Target
from harness import Server

CHEAP = [
    pytest.param(server, attack, id=f"{server}-{attack.name}")
    for server in ("mms-hf", "http-fused")
    for attack in attacks.ALL
    if attack.is_cheap and server.split("-")[0] in attack.fronts
]


@pytest.mark.parametrize(("server", "attack"), CHEAP, indirect=["server"])
def test_what_takes_no_time(server: Server, attack: Attack) -> None:
    attack.run(Target("127.0.0.1", server.port, server.process.pid))


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
