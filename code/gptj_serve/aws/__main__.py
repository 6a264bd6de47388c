"""``python -m gptj_serve.aws COMMAND``: runs a command; Ctrl-C ends it quietly even while it is imported."""

import importlib
import signal
import sys


def main() -> int:
    """Import a command and run it; returns its exit code."""
    is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if is_default:  # a process in the background ignores Ctrl-C and keeps ignoring it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = importlib.import_module(f"gptj_serve.aws.{sys.argv[1]}")
    if is_default:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return int(command.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
