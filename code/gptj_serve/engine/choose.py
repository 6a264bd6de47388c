"""Which engine runs: a pure function of what was asked for and what the machine has."""

from dataclasses import dataclass

from gptj_serve.errors import StartupError

MIN_CAPABILITY = (7, 0)
"""DeepSpeed's kernels need sm_70 (V100) or newer."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What an engine may count on.

    Attributes:
        gpu: Name of the GPU, None without one.
        capability: Its compute capability.
        kernels_missing: Why DeepSpeed's kernels cannot be had here; None when they can.
        no_gpu: Why `gpu` is None.
        trouble: What keeps a GPU that is there from being used; None when nothing does. Nobody who pays
            for a GPU wants to find a model of 6 billion parameters on the CPU, so nothing starts then.
    """

    gpu: str | None
    capability: tuple[int, int]
    kernels_missing: str | None
    no_gpu: str = "no NVIDIA GPU is visible"
    trouble: str | None = None


def choose_engine(asked: str, machine: Machine) -> tuple[str, str]:
    """Pick the engine.

    Args:
        asked: One of `gptj_serve.settings.ENGINES`.
        machine: What the machine has.

    Returns:
        The engine's name and the reason, in words for the log.

    Raises:
        StartupError: The engine asked for cannot run here, or the GPU cannot be used.
    """
    if machine.trouble:
        raise StartupError(machine.trouble)
    obstacle = _obstacle(machine)
    if asked == "deepspeed" and obstacle:
        raise StartupError(f"GPTJ_ENGINE=deepspeed: {obstacle}; hf runs anywhere, auto takes what can run")
    if asked != "auto":
        return asked, f"GPTJ_ENGINE={asked}"
    if obstacle:
        return "hf", f"auto: {obstacle}"
    return "deepspeed", f"auto: its kernels run on {machine.gpu}"


def _obstacle(machine: Machine) -> str | None:
    if machine.gpu is None:
        return machine.no_gpu
    if machine.capability < MIN_CAPABILITY:
        have = ".".join(map(str, machine.capability))
        return f"{machine.gpu} has compute capability {have}; 7.0 or newer is needed"
    if machine.kernels_missing:
        return f"DeepSpeed's kernels are not there: {machine.kernels_missing}"
    return None
