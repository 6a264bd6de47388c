"""Which engine is chosen, and what a refusal says."""

import pytest

from gptj_serve.engine.choose import Machine, choose_engine
from gptj_serve.errors import StartupError

T4 = Machine("Tesla T4", (7, 5), None)
CPU = Machine(None, (0, 0), None)
K80 = Machine("Tesla K80", (3, 7), None)
NO_KERNELS = Machine("Tesla T4", (7, 5), "no nvcc")


@pytest.mark.parametrize(
    ("machine", "engine"), [(T4, "deepspeed"), (CPU, "hf"), (K80, "hf"), (NO_KERNELS, "hf")]
)
def test_auto(machine: Machine, engine: str) -> None:
    assert choose_engine("auto", machine)[0] == engine


@pytest.mark.parametrize(
    ("machine", "reason"),
    [(CPU, "no NVIDIA GPU"), (K80, "compute capability 3.7"), (NO_KERNELS, "no nvcc")],
)
def test_deepspeed_where_it_cannot_run_is_refused_with_the_reason(machine: Machine, reason: str) -> None:
    with pytest.raises(StartupError, match=reason):
        choose_engine("deepspeed", machine)
    assert reason in choose_engine("auto", machine)[1]


def test_what_is_asked_for_is_taken() -> None:
    assert choose_engine("hf", T4) == ("hf", "GPTJ_ENGINE=hf")
