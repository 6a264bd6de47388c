"""What a chat template may take."""

NUM_WORKERS = 2
"""Renderings at once: one that takes all its time leaves room for another."""
MAX_CPU_S = 1.0
"""Of computing; a usual template takes a thousandth. Not wall time: the machine may be busy."""
MAX_MEMORY_BYTES = 256 * 1024 * 1024
MAX_PROMPT_BYTES = 4 * 1024 * 1024
"""Beyond the messages' own size; what passes a front's memory is bounded, too."""
TOO_MUCH = (
    f"takes more than it may: {MAX_CPU_S:g} s of computing, {MAX_MEMORY_BYTES >> 20} MiB of memory,"
    f" {MAX_PROMPT_BYTES >> 20} MiB of text beyond that of the messages"
)
MAX_WAITING = 64
"""Requests that wait for a rendering, in one process of a front."""
WAIT_S = 30.0
"""Wall time of a request for its turn and its prompt."""
