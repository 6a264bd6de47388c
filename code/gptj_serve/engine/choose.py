"""Chooses the engine: a pure function of what was asked for and what the machine has."""

from dataclasses import dataclass

from gptj_serve.errors import StartupError

MIN_CAPABILITY = (7, 0)
"""DeepSpeed's kernels and our own need sm_70 (V100) or newer."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the machine has for an engine.

    Attributes:
        gpu: Name of the GPU; None without one.
        capability: The GPU's compute capability.
        kernels_missing: Why DeepSpeed's kernels cannot be had here; None when they can.
        fused_missing: Why the fused engine's kernels cannot be had here; None when they can.
        no_gpu: Why `gpu` is None.
        trouble: What keeps a GPU that is there from being used; None when nothing does. Nothing starts then,
            as nobody should learn from slow answers that 6 billion parameters run on the CPU.
    """

    gpu: str | None
    capability: tuple[int, int]
    kernels_missing: str | None
    fused_missing: str | None
    no_gpu: str = "no NVIDIA GPU is visible"
    trouble: str | None = None


def choose_engine(asked: str, machine: Machine, fused_obstacle: str | None = None) -> tuple[str, str]:
    """Choose the fastest engine that runs the model here, as measured (docs/benchmarks).

    Args:
        asked: One of `gptj_serve.settings.ENGINES`.
        machine: What the machine has.
        fused_obstacle: What keeps the fused engine from running the model; None when nothing does.

    Returns:
        The engine's name and the reason, in words for the log.

    Raises:
        StartupError: The engine asked for cannot run here, or the GPU cannot be used.
    """
    if machine.trouble:
        raise StartupError(machine.trouble)
    obstacles = {
        "fused": fused_obstacle or _obstacle(machine, "the fused engine's kernels", machine.fused_missing),
        "deepspeed": _obstacle(machine, "DeepSpeed's kernels", machine.kernels_missing),
    }
    if asked == "fused" and machine.gpu is None and not fused_obstacle:
        return asked, "GPTJ_ENGINE=fused: on the CPU, in plain PyTorch"
    if asked != "auto":
        if obstacles.get(asked):
            raise StartupError(
                f"GPTJ_ENGINE={asked}: {obstacles[asked]}; hf runs anywhere, auto takes what can run"
            )
        return asked, f"GPTJ_ENGINE={asked}"
    if machine.gpu is None:
        return "hf", f"auto: {machine.no_gpu}"
    passed_over: list[str] = []
    for name, obstacle in obstacles.items():
        if not obstacle:
            why = f" ({'; '.join(passed_over)})" if passed_over else ""
            return name, f"auto: its kernels run on {machine.gpu}{why}"
        passed_over.append(obstacle)
    return "hf", "auto: " + "; ".join(dict.fromkeys(passed_over))


def _obstacle(machine: Machine, kernels: str, missing: str | None) -> str | None:
    if machine.gpu is None:
        return machine.no_gpu
    if machine.capability < MIN_CAPABILITY:
        have = ".".join(map(str, machine.capability))
        return f"{machine.gpu} has compute capability {have}; 7.0 or newer is needed"
    if missing:
        return f"{kernels} are not there: {missing}"
    return None
