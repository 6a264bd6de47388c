"""Finds the name that clients are told for the model."""

import re
from pathlib import Path

from gptj_serve.host.regular_files import read_json
from gptj_serve.models.config import CONFIG
from gptj_serve.request import DEFAULT_MODEL_NAME
from gptj_serve.settings import Settings

MAX_NAME_CHARS = 200
_PUBLISHED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""``owner/name``, as the Hub has it. A path on the machine that trained the model is no such name."""


def find_model_name(settings: Settings, model_dir: Path) -> str:
    """The name that was set, or else the name under which ``config.json`` says the model was published.

    Args:
        settings: The service's settings.
        model_dir: The model's directory, whose files have been checked.
    """
    if settings.model_name is not None:
        return settings.model_name
    name = read_json(model_dir / CONFIG).get("_name_or_path")
    if isinstance(name, str) and len(name) <= MAX_NAME_CHARS and _PUBLISHED.fullmatch(name):
        return name
    return DEFAULT_MODEL_NAME
