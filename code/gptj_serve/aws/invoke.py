"""``scripts/invoke``: asks an endpoint, or a service on this machine, for text."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptj_serve.aws.ask import answer_view, question, url_service
from gptj_serve.aws.ask.async_service import AsyncService
from gptj_serve.aws.ask.endpoint_service import EndpointService
from gptj_serve.aws.ask.question import JSON, Question
from gptj_serve.aws.common.clients import connect
from gptj_serve.aws.common.command import make_parser, run
from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import Interrupted, UsageError
from gptj_serve.aws.common.plan import Action, show

DEFAULT_NAME = "gpt-j"
_TIMEOUT_S, _STREAM_TIMEOUT_S, _ASYNC_TIMEOUT_S = 70.0, 490.0, 1800.0
_STOPPED = "Stopped."

_DESCRIPTION = "Ask an endpoint, or a service on this machine, for text."
_EXAMPLES = """
scripts/invoke "In the beginning"                       the endpoint gpt-j
scripts/invoke gpt-j "In the beginning" --stream        token by token (endpoints with GPTJ_FRONT=http)
scripts/invoke http://127.0.0.1:8080 "In the beginning" --max-new-tokens 20 --temperature 0.8
scripts/invoke gpt-j - < prompt.txt                     the prompt from a file
scripts/invoke gpt-j --body request.json --json         any request of docs/api.md, and its whole answer
scripts/invoke gpt-j "Once" --parameters '{"num_return_sequences": 2, "do_sample": true}'
scripts/invoke gpt-j-later "In the beginning" --async   an asynchronous endpoint
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run(_parser(), _invoke, argv, mixed=True)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("invoke", _DESCRIPTION, _EXAMPLES)
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="[NAME|URL] TEXT",
        help=f"whom (default: {DEFAULT_NAME}) and what; - reads it",
    )
    add("--body", metavar="FILE", help="the whole request, instead of TEXT and parameters; - reads it")
    add("--content-type", default=JSON, metavar="TYPE", help=f"of --body (default: {JSON})")
    add("--stream", action="store_true", help="write the text as it comes")
    add(
        "--async",
        dest="is_async",
        action="store_true",
        help="the endpoint is asynchronous: wait for its answer",
    )
    add("--component", metavar="NAME", help="the inference component to ask, where an endpoint has several")
    add(
        "--timeout",
        type=_seconds,
        metavar="S",
        help="give up after so long without an answer (default: 70; 490 "
        "between the pieces of a stream; 1800 with --async)",
    )
    group = parser.add_argument_group("parameters (see docs/api.md; what is left out is up to the service)")
    add = group.add_argument
    add("--max-new-tokens", type=int, metavar="N", help="length of the answer at most")
    add("--temperature", type=float, metavar="T", help="above 0 samples; 0 takes the most likely token")
    add("--top-p", type=float, metavar="P", help="sample from the most likely tokens of this probability")
    add("--top-k", type=int, metavar="K", help="sample from so many tokens")
    add("--seed", type=int, metavar="N", help="sample the same text again")
    add("--stop", action="append", metavar="TEXT", help="end before this text (repeatable)")
    add("--parameters", type=_json_object, default={}, metavar="JSON", help="all others, as one object")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: must be seconds above 0, at most 3600")
    return seconds


def _json_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON: {error}") from None
    if not isinstance(document, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return document


def _invoke(arguments: argparse.Namespace, console: Console) -> None:
    target, text = _words(arguments)
    asked = _question(arguments, text)
    url = url_service.parse_url(target)
    if url and (arguments.is_async or arguments.component):
        raise UsageError("--async and --component: only for endpoints, not for a URL")
    if arguments.is_async and asked.stream:
        raise UsageError("--stream: an asynchronous endpoint answers as a whole")
    try:
        if url:
            here = url_service.UrlService(url, _timeout_s(arguments, asked))
            if arguments.dry_run:
                _show_request(here, asked, console)
            else:
                answer_view.show(here, asked, console)
        else:
            _invoke_endpoint(arguments, target, asked, console)
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted(_STOPPED) from None


def _invoke_endpoint(arguments: argparse.Namespace, name: str, asked: Question, console: Console) -> None:
    aws = connect(arguments.region, arguments.profile)
    there = EndpointService(aws, name, arguments.component, _timeout_s(arguments, asked))
    later = AsyncService(there, arguments.timeout or _ASYNC_TIMEOUT_S)
    if arguments.dry_run:
        actions = later.actions(asked, "NAME") if arguments.is_async else [there.action(asked)]
        _show_plan(actions, asked, console)
    elif arguments.is_async:
        answer_view.show_whole(later.ask(asked, console), console)
    else:
        answer_view.show(there, asked, console)


def _words(arguments: argparse.Namespace) -> tuple[str, str | None]:
    """The target to ask, and the prompt; None with ``--body``."""
    words = list(arguments.words)
    num_texts = 0 if arguments.body is not None else 1
    if len(words) == num_texts:
        words.insert(0, DEFAULT_NAME)
    if len(words) != num_texts + 1:
        wanted = "[NAME|URL]" if arguments.body is not None else '[NAME|URL] "TEXT"'
        raise UsageError(f"expected {wanted}, got {len(arguments.words)} words; a text needs quotes")
    if num_texts and len(arguments.words) == 1 and url_service.parse_url(words[1]):
        raise UsageError(f"{words[1]}: what should be asked there?")
    return words[0], _read_text(words[1]) if num_texts else None


def _read_text(word: str) -> str:
    return sys.stdin.read() if word == "-" else word


def _question(arguments: argparse.Namespace, text: str | None) -> Question:
    names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "stop")
    given = {name: getattr(arguments, name) for name in names}
    if text is not None:
        return question.of_text(text, question.sampling(given, arguments.parameters), arguments.stream)
    if named := [name for name, value in given.items() if value is not None]:
        raise UsageError(f"--{named[0].replace('_', '-')}: --body is the whole request")
    body = sys.stdin.buffer.read() if arguments.body == "-" else Path(arguments.body).read_bytes()
    return question.of_body(body, arguments.content_type, arguments.stream)


def _timeout_s(arguments: argparse.Namespace, asked: Question) -> float:
    return float(arguments.timeout or (_STREAM_TIMEOUT_S if asked.stream else _TIMEOUT_S))


def _show_request(here: url_service.UrlService, asked: Question, console: Console) -> None:
    where = here.url._replace(path=here.path, query="").geturl()
    text = f"POST {where}\nContent-Type: {asked.content_type}\n\n{asked.text}"
    console.result({"url": where, "content_type": asked.content_type, "body": asked.text}, text)


def _show_plan(actions: Sequence[Action], asked: Question, console: Console) -> None:
    body = {"Body": asked.text}  # this is for people to read, not the bytes that are sent
    shown = [
        replace(one, request={**one.request, **body}) if "Body" in one.request else one for one in actions
    ]
    console.result({"plan": [action.to_dict() for action in shown]}, show(shown))


if __name__ == "__main__":
    sys.exit(main())
