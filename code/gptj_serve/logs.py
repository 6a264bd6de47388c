"""Writes logs as one JSON object a line to stdout. Prompts, answers and secrets are never logged.

Every record of ours is an event with a name and fields (`log_event`); docs/log-events.md lists them.
"""

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

FOREIGN = "library"
"""The event of a record that a library made."""


def log_event(
    logger: logging.Logger,
    event: str,
    message: str,
    *,
    level: int = logging.INFO,
    error: BaseException | None = None,
    **fields: Any,
) -> None:
    """Log an event.

    Args:
        logger: The module's logger.
        event: The event's name, by which programs find it.
        message: The message for people.
        level: A level of `logging`.
        error: An exception, whose traceback becomes a field.
        fields: What else there is to know, under names that do not change.
    """
    logger.log(level, "%s", message, exc_info=error, extra={"fields": {"event": event, **fields}})


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self.process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {"event": FOREIGN}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(process: str, level: str) -> None:
    """Send this process's logs to stdout as JSON.

    Args:
        process: Name of the process, a field of every line.
        level: One of `gptj_serve.settings.LOG_LEVELS`.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(process))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
