"""Commands that end in the middle, after each of their calls that change something."""

import itertools
from collections.abc import Callable, Iterator

from support.aws.deploy_account import cut_off
from support.aws.run_commands import Result

INTERRUPTED = 130


def cut_off_everywhere(run: Callable[[], Result]) -> Iterator[int]:
    """Run a command again and again, and end it when its first call is done, its second …

    Between two runs the caller looks, and makes things as they were at first.

    Yields:
        The number of calls that were made.
    """
    for after in itertools.count(1):
        with cut_off(after, KeyboardInterrupt):
            result = run()
        if result.code == 0:
            assert after > 1, "nothing was interrupted"
            return
        assert result.code == INTERRUPTED, result
        yield after


def cut_off_again_and_again(run: Callable[[], Result]) -> int:
    """Run a command that never gets beyond its first call, until there is nothing left for it to do.

    Each run finds what one more call has left. That takes less time than to begin anew each time, where
    nothing depends on calls of the same run.

    Returns:
        The number of calls.
    """
    for num_calls in itertools.count():
        with cut_off(1, KeyboardInterrupt):
            result = run()
        if result.code == 0:
            return num_calls
        assert result.code == INTERRUPTED, result
    raise AssertionError
