"""The attacks of `attacks` on a service from outside."""

import pytest

import attacks
from attacks import Attack, Target


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
