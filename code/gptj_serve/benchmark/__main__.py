"""``scripts/benchmark``: one command that runs every measurement."""

import importlib
import sys

COMMANDS = {
    "run": ("run.command", "measure servers: grid, latency, throughput, start and memory"),
    "report": ("report.command", "tables and figures from files of results"),
    "random-6b": ("engine.random_model", "write a GPT-J-6B-shaped model with random weights (12 GB)"),
    "front": ("front.overhead", "what the fronts add, with an engine that has no model"),
    "soak": ("soak", "many clients for a long time: is every answer right?"),
    "decode": ("engine.decode", "the fused engine's forward passes alone"),
    "offline": ("engine.offline", "the fused engine with its scheduler, without serving"),
    "bandwidth": ("facts.bandwidth", "how fast this GPU reads its memory"),
}
"""The commands: their names, their modules below this package, and what they do."""


def main() -> int:
    """Run a command; returns its exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: scripts/benchmark COMMAND [OPTION…]    (COMMAND --help tells its options)\n")
        print("\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()))
        return 0 if len(sys.argv) > 1 else 2
    if sys.argv[1] not in COMMANDS:
        print(f"scripts/benchmark: {sys.argv[1]!r} is none of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        module = importlib.import_module(f"gptj_serve.benchmark.{COMMANDS[sys.argv[1]][0]}")
        return module.main(sys.argv[2:]) or 0
    except ModuleNotFoundError as error:
        print(f"scripts/benchmark {sys.argv[1]} needs the package {error.name}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
