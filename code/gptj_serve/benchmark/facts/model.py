"""What a file of results says of the model: enough to recognise it and to compute its limits."""

import hashlib
from pathlib import Path
from typing import Any

from gptj_serve.models.config import CONFIG
from gptj_serve.models.model_dir import find_checkpoint


def model_facts(root: Path, given: str | None = None) -> dict[str, Any]:
    """A model's dimensions and a fingerprint of its configuration and files' names and sizes.

    Args:
        root: The model's directory.
        given: How the user wrote that; None is as it is.

    Raises:
        StartupError: There is no whole model.
    """
    checkpoint = find_checkpoint(root, given, option="--model ")
    files = sorted(
        (path.name, path.stat().st_size) for path in checkpoint.directory.iterdir() if path.is_file()
    )
    config = (checkpoint.directory / CONFIG).read_bytes()
    return {
        "fingerprint": hashlib.sha256(config + repr(files).encode()).hexdigest()[:16],
        "num_layers": checkpoint.architecture.num_layers,
        "width": checkpoint.architecture.width,
        "inner": checkpoint.architecture.inner,
        "vocab_size": checkpoint.architecture.vocab_size,
        "max_context": checkpoint.architecture.max_positions,
        "num_weights": checkpoint.num_weights,
    }
