"""``python -m gptj_serve`` is ``serve``."""

import sys

from gptj_serve.launcher import main

if __name__ == "__main__":
    sys.exit(main())
