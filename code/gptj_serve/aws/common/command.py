"""What all commands have in common: their options, and how they end."""

import argparse
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from botocore.exceptions import BotoCoreError, ClientError

from gptj_serve.aws.common.console import Console
from gptj_serve.aws.common.errors import CommandError, Interrupted, explain, redact

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
"""Exit codes; 2 is argparse's own."""

Handler = Callable[[argparse.Namespace, Console], None]
"""Does the work and shows the result; raises `CommandError` or what botocore raises."""


def make_parser(name: str, description: str, examples: str, *, aws: bool = True) -> argparse.ArgumentParser:
    """A parser with the common options.

    Args:
        name: The script's name, for example ``push``.
        description: What the script does, for ``--help``.
        examples: Command lines to copy, one a line, for the end of ``--help``.
        aws: Whether the script has ``--region`` and ``--profile``.
    """
    lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
    parser = argparse.ArgumentParser(
        prog=f"scripts/{name}",
        description=description,
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    common = parser.add_argument_group("common options")
    if aws:
        common.add_argument("--region", help="AWS region (default: as configured for the AWS command line)")
        common.add_argument("--profile", help="profile of the AWS configuration (default: AWS_PROFILE)")
    common.add_argument("--json", action="store_true", help="show the result as one JSON object")
    common.add_argument("--dry-run", action="store_true", help="show what would be done, and change nothing")
    common.add_argument("--traceback", action="store_true", help="show where in the code an error comes from")
    return parser


def run(
    parser: argparse.ArgumentParser,
    handler: Handler,
    argv: Sequence[str] | None = None,
    *,
    mixed: bool = False,
) -> int:
    """Parse the command line, run the handler, and say in one line why it failed if it does.

    Args:
        parser: A parser made by `make_parser`.
        handler: Gets the parsed options and the console.
        argv: The command line, ``sys.argv`` by default.
        mixed: Whether options may stand between positional arguments.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted (also by SIGTERM and SIGHUP).
    """
    try:
        # not for all commands: it cannot show the defaults of positional arguments in --help
        arguments = _parse_mixed(parser, argv) if mixed else parser.parse_args(argv)
    except SystemExit as end:  # argparse has said why
        return USAGE if end.code else DONE
    try:
        with _signals_interrupt():
            handler(arguments, Console(arguments.json))
        return DONE
    except KeyboardInterrupt as stop:
        again = "Interrupted. Run the same command again: it goes on from here."
        # others' have texts, too: Python adds one where a codec was interrupted
        _say("\n" + (str(stop) if isinstance(stop, Interrupted) else again))
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if arguments.traceback:
            traceback.print_exc()
        return _failed(error)


def _parse_mixed(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse options between ``words``. What follows ``--`` are words, too, which argparse gets wrong."""
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_intermixed_args(given[:end])
    arguments.words += given[end + 1 :]
    return arguments


def _failed(error: Exception) -> int:
    if isinstance(error, BotoCoreError | ClientError):
        error = explain(error)
    if isinstance(error, CommandError):
        _say(f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else ""))
        return error.exit_code
    if isinstance(error, OSError):
        _say(f"error: {redact(f'{error.filename}: {error.strerror}' if error.filename else str(error))}")
        return FAILED
    _say(
        f"error: {type(error).__name__}: {redact(str(error))}\n"
        "  this should not happen; with --traceback it shows where it did"
    )
    return FAILED


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Treat SIGTERM and a closed terminal as Ctrl-C while this is entered, so that all is cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # signals that were ignored from the start stay ignored: nohup, jobs in the background
    numbers = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
