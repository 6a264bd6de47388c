"""Other ways to run GPT-J, which are measured beside ours where they are installed."""

import importlib.util

PEERS = {"transformers-compiled": "transformers", "ctranslate2": "ctranslate2", "vllm": "vllm"}
"""The peers' names and the packages that they need."""

ONE_AT_A_TIME = ("transformers-compiled", "ctranslate2")
"""The peers that run in a process of ours, without HTTP: they take one request at a time."""


def missing(peer: str) -> str | None:
    """Why a peer cannot run here; None if it can."""
    package = PEERS[peer]
    return None if importlib.util.find_spec(package) else f"the package {package} is not installed"
