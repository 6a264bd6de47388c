"""What a measurement starts, and where that may listen."""

import subprocess
import sys

from gptj_serve.benchmark.targets.processes import free_port

ASK = """
from gptj_serve.benchmark.targets.processes import free_port
print(*[free_port({}, {}) for _ in range(10)])
"""


def test_a_port_is_given_once_while_those_who_asked_are_there() -> None:
    first, last = 19000, 19039
    given = [free_port(first, last) for _ in range(10)]
    asked = subprocess.run(
        [sys.executable, "-c", ASK.format(first, last)], capture_output=True, text=True, check=True
    )
    given += map(int, asked.stdout.split())
    assert len(set(given)) == 20
    assert all(first <= port <= last for port in given)
