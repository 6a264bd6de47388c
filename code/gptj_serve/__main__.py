"""``python -m gptj_serve`` is ``serve``."""

import signal
import sys

# they are blocked until the launcher looks at them: PID 1 would lose a signal without a handler
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

from gptj_serve.launcher import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
