"""Which engine is chosen, and what a refusal says."""

import pytest

from gptj_serve.engine.choose import Machine, choose_engine
from gptj_serve.errors import StartupError

T4 = Machine("Tesla T4", (7, 5), None, None)
CPU = Machine(None, (0, 0), None, None)
K80 = Machine("Tesla K80", (3, 7), None, None)
NO_KERNELS = Machine("Tesla T4", (7, 5), "no nvcc", "no compiler")
DEEPSPEED_ONLY = Machine("Tesla T4", (7, 5), None, "no compiler")
FUSED_ONLY = Machine("Tesla T4", (7, 5), "no package", None)
ANOTHER_MODEL = "n_embd / n_head is 32"


@pytest.mark.parametrize(
    ("machine", "engine"),
    [
        (T4, "fused"),
        (FUSED_ONLY, "fused"),
        (DEEPSPEED_ONLY, "deepspeed"),
        (NO_KERNELS, "hf"),
        (K80, "hf"),
        (CPU, "hf"),
    ],
)
def test_auto(machine: Machine, engine: str) -> None:
    assert choose_engine("auto", machine)[0] == engine


def test_auto_says_what_was_passed_over_and_why() -> None:
    assert choose_engine("auto", DEEPSPEED_ONLY)[1] == (
        "auto: its kernels run on Tesla T4 (the fused engine's kernels are not there: no compiler)"
    )
    assert choose_engine("auto", FUSED_ONLY)[1] == "auto: its kernels run on Tesla T4"
    name, reason = choose_engine("auto", NO_KERNELS)
    assert (name, "no compiler" in reason, "no nvcc" in reason) == ("hf", True, True)


def test_auto_takes_the_next_engine_for_a_model_that_fused_does_not_run() -> None:
    assert choose_engine("auto", T4, ANOTHER_MODEL) == (
        "deepspeed",
        f"auto: its kernels run on Tesla T4 ({ANOTHER_MODEL})",
    )
    assert choose_engine("auto", FUSED_ONLY, ANOTHER_MODEL)[0] == "hf"


@pytest.mark.parametrize(
    ("asked", "machine", "reason"),
    [
        ("deepspeed", CPU, "no NVIDIA GPU"),
        ("deepspeed", K80, "compute capability 3.7"),
        ("deepspeed", NO_KERNELS, "no nvcc"),
        ("fused", K80, "compute capability 3.7"),
        ("fused", NO_KERNELS, "no compiler"),
    ],
)
def test_where_it_cannot_run_it_is_refused_with_the_reason(asked: str, machine: Machine, reason: str) -> None:
    with pytest.raises(StartupError, match=f"GPTJ_ENGINE={asked}: .*{reason}"):
        choose_engine(asked, machine)


@pytest.mark.parametrize("machine", [T4, CPU])
def test_fused_refuses_models_that_its_kernels_do_not_run(machine: Machine) -> None:
    with pytest.raises(StartupError, match=f"GPTJ_ENGINE=fused: {ANOTHER_MODEL}"):
        choose_engine("fused", machine, ANOTHER_MODEL)


def test_fused_runs_on_a_cpu_when_asked_for() -> None:
    assert choose_engine("fused", CPU) == ("fused", "GPTJ_ENGINE=fused: on the CPU, in plain PyTorch")


def test_what_is_asked_for_is_taken() -> None:
    assert choose_engine("hf", T4) == ("hf", "GPTJ_ENGINE=hf")
