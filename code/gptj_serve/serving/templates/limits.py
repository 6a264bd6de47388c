"""Limits of what rendering a chat template may take."""

NUM_WORKERS = 2
"""How many renderings run at once, so that one that takes all its time leaves room for another."""
MAX_CPU_S = 1.0
"""Seconds of processor time for a rendering; a usual template takes a thousandth of that."""
MAX_MEMORY_BYTES = 256 * 1024 * 1024
MAX_PROMPT_BYTES = 4 * 1024 * 1024
"""Size of a prompt beyond the messages' own size, to bound what passes through a front's memory."""
TOO_MUCH = (
    f"takes more than it may: {MAX_CPU_S:g} s of computing, {MAX_MEMORY_BYTES >> 20} MiB of memory,"
    f" {MAX_PROMPT_BYTES >> 20} MiB of text beyond that of the messages"
)
MAX_WAITING = 64
"""How many requests wait for a rendering in a process of a front."""
WAIT_S = 30.0
"""How many seconds a request may wait for its turn and its prompt."""
