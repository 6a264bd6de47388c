"""Tries all attacks, or some, on a service: see the package."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from attacks import ALL, Target


def main() -> None:
    """Command line; exits with the number of attacks that got through."""
    parser = argparse.ArgumentParser(prog="tests/attacks")
    parser.add_argument("url", help="where the service listens, as http://127.0.0.1:8080")
    parser.add_argument("--pid", type=int, help="the service's first process, on this machine: its memory")
    parser.add_argument("names", nargs="*", help="only these (default: all that its front promises to hold)")
    args = parser.parse_intermixed_args()  # names may come behind the options
    sys.exit(run(Target.of(args.url, args.pid), args.names))


def run(target: Target, names: list[str]) -> int:
    """Try attacks and print what came of each; how many got through."""
    chosen = [one for one in ALL if (one.name in names if names else target.front in one.fronts)]
    num_through = 0
    for one in chosen:
        started_s = time.monotonic()
        try:
            one.run(target)
            found = "held"
        except (AssertionError, OSError) as error:
            found = f"GOT THROUGH: {type(error).__name__}: {str(error)[:300]}"
            num_through += 1
        print(f"{one.name}: {found} ({time.monotonic() - started_s:.1f} s)", flush=True)
    return num_through


if __name__ == "__main__":
    main()
