"""Shows a service's answer: its text as it comes, or with ``--json`` what the service sent."""

import contextlib
import itertools
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from gptj_serve.aws.ask.answer import EventReader, parse_event, texts
from gptj_serve.aws.ask.question import Question
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError


class Askable(Protocol):
    """A service that can be asked."""

    def ask(self, question: Question) -> bytes:
        """The whole answer."""
        ...

    def stream(self, question: Question) -> Generator[bytes, None, None]:
        """Its pieces as they come; closing it ends the request."""
        ...


@dataclass(slots=True)
class _Pace:
    """Notes when tokens came, in seconds since the question."""

    started_s: float
    num_tokens: int = 0
    first_s: float = 0.0
    last_s: float = 0.0

    def note(self) -> None:
        self.last_s = time.monotonic() - self.started_s
        self.first_s = self.first_s or self.last_s
        self.num_tokens += 1

    def __str__(self) -> str:
        spread_s = self.last_s - self.first_s
        rate = f", then {(self.num_tokens - 1) / spread_s:.1f} a second" if spread_s > 0 else ""
        return f"{self.num_tokens} tokens, the first after {self.first_s:.2f} s{rate}"


def show(service: Askable, question: Question, console: Console) -> None:
    """Ask a question and show the answer.

    Raises:
        CommandError: There is no answer, it is an error, or a stream ends before the text does.
    """
    if not question.stream:
        show_whole(service.ask(question), console)
        return
    with contextlib.closing(service.stream(question)) as pieces:
        _show_stream(pieces, console)


def show_whole(body: bytes, console: Console) -> None:
    """Show an answer that came as a whole."""
    print(body.decode("utf-8", "replace") if console.as_json else "\n".join(texts(body)), flush=True)


def _show_stream(pieces: Iterable[bytes], console: Console) -> None:
    started_s = time.monotonic()
    seen: list[bytes] = []
    events = _events(pieces, seen)
    first = next(events, None)
    if first is None:  # a service that does not stream has answered as a whole
        show_whole(b"".join(seen), console)
        return
    _show_events(itertools.chain([first], events), started_s, console)


def _events(pieces: Iterable[bytes], seen: list[bytes]) -> Iterator[str]:
    """The data of all events; pieces are kept until the first event has come."""
    reader, has_begun = EventReader(), False
    for piece in pieces:
        if not has_begun:
            seen.append(piece)
        for data in reader.feed(piece):
            has_begun = True
            yield data


def _show_events(events: Iterable[str], started_s: float, console: Console) -> None:
    pace, reason, is_whole = _Pace(started_s), None, False
    try:
        for data in events:
            event = parse_event(data)
            if event.index and not console.as_json:
                raise CommandError(
                    "there are several answers, one mixed with another", "--json shows all events"
                )
            sys.stdout.write(f"{data}\n" if console.as_json else event.text)
            sys.stdout.flush()
            if event.is_token:
                pace.note()
            reason, is_whole = event.reason or reason, is_whole or event.is_last
    finally:
        if not console.as_json:
            print(flush=True)  # whatever comes next begins a new line
    if not is_whole:
        raise CommandError("the stream ended before the text did", "ask again")
    if reason == "deadline":
        console.progress("The text was cut off at the service's deadline.")
    if console.is_terminal:
        console.progress(str(pace))
