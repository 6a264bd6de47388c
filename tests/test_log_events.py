"""The events of the log: all go through one helper, and docs/log-events.md has each."""

import ast
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from gptj_serve import logs

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "code" / "gptj_serve"
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
PAGE = (ROOT / "docs" / "log-events.md").read_text()


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(PACKAGE)), node


def test_every_record_is_an_event() -> None:
    around = [
        (path, call.lineno)
        for path, call in calls()
        if isinstance(call.func, ast.Attribute)
        and call.func.attr in LEVELS
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in ("logger", "logging")
        and path != "logs.py"
    ]
    assert around == []


def test_the_page_has_every_event_and_no_other() -> None:
    named = set()
    for path, call in calls():
        if isinstance(call.func, ast.Name) and call.func.id == "log_event":
            event = call.args[1]
            assert isinstance(event, ast.Constant), (path, call.lineno)
            named.add(event.value)
    told = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert told == named | {logs.FOREIGN}


def test_records_of_libraries_are_events_too() -> None:
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(logs.JsonFormatter("front"))
    logger = logging.getLogger("tests.log_events")
    logger.propagate = False
    logger.addHandler(handler)
    logger.warning("100 %d", 1)
    logs.log_event(logger, "ready", "100 %d", level=logging.WARNING, port=1)
    own, ours = map(json.loads, handler.stream.getvalue().splitlines())
    assert (own["event"], own["message"]) == ("library", "100 1")
    assert (ours["event"], ours["message"], ours["port"], ours["level"]) == ("ready", "100 %d", 1, "warning")
