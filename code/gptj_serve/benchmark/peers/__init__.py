"""Other ways to run GPT-J, measured beside ours where they are installed."""

import importlib.util

PEERS = {"transformers-compiled": "transformers", "ctranslate2": "ctranslate2", "vllm": "vllm"}
"""Names, and the packages that they need."""

ONE_AT_A_TIME = ("transformers-compiled", "ctranslate2")
"""Those that run in a process of ours, without HTTP."""


def missing(peer: str) -> str | None:
    """Why a peer cannot run here; None if it can."""
    package = PEERS[peer]
    return None if importlib.util.find_spec(package) else f"the package {package} is not installed"
