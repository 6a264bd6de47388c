"""The families of models that are known; each is a file with ``read``, ``notes`` and ``tensors``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gptj_serve.models.architecture import Architecture, Part
from gptj_serve.models.families import gptj


def read_architecture(raw: Mapping[str, Any], path: Path) -> Architecture:
    """Read the architecture from a config.json.

    Args:
        raw: The file's content; names that are not given have the family's defaults.
        path: The file's path, for messages.

    Raises:
        StartupError: It is no model of a known family, it is quantized, or numbers are out of their range or
            make no sense.
    """
    return gptj.read(raw, path)


def config_notes(raw: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """What is unusual in a config.json but changes nothing, a sentence each."""
    return gptj.notes(raw, path)


def tensors_of(architecture: Architecture) -> dict[str, Part]:
    """Every tensor that a checkpoint of this model must have, by its name; a tied head is not among them."""
    return gptj.tensors(architecture)


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of `tensors_of`."""
    return {name: part.shape for name, part in tensors_of(architecture).items()}
