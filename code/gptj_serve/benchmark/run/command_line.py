"""The command line of ``scripts/benchmark run``."""

import argparse
from pathlib import Path

from gptj_serve import values
from gptj_serve.benchmark.peers import PEERS
from gptj_serve.benchmark.results import Cell
from gptj_serve.settings import ENGINES

LOADS = ("grid", "latency", "throughput", "load", "memory")
TOGETHER_BATCH_SIZE = "8"
DEFAULT_CELL = Cell(200, 100)

DESCRIPTION = """\
Measure servers that speak our API, one beside the other. Every request goes into --out; interrupted, the same
command goes on where it was. Exit code 0: all is measured and every answer was right; 1: not; 2: wrong usage;
130: interrupted."""

EXAMPLES = """\
loads:
  grid        every input x output length, whole round trips, one request at a time
  latency     one request at a time as a stream: time to the first token, between tokens, to the end
  throughput  1 to 64 clients that wait for their answers; with --rates also arrivals that wait for nobody
  load        from start to ready, by phase (--spawn)
  memory      most memory of GPU and host, while starting and under load (--spawn)

examples (B is scripts/benchmark):
  B run --url http://127.0.0.1:8080 --out results.json
  B run --url new=http://10.0.0.1:8080 --url old=http://10.0.0.2:8080 --load grid,latency --out ab.json
  B run --spawn hf,fused --inputs 50 --outputs 50 --out demo.json
  B run --endpoint gpt-j --runs 20 --out endpoint.json
  B run --spawn fused,deepspeed,hf --together --model DIR --runs 20 --runs hf=3 --out grid.json
  B run --spawn fused,small=fused --set small:GPTJ_MAX_BATCH_SIZE=4 --model DIR --load throughput --out t.json
  B run --spawn fused,ctranslate2,vllm,transformers-compiled --model DIR --out peers.json
"""


def make_parser() -> argparse.ArgumentParser:
    """The parser; `options.parse` checks what depends on several options."""
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark run",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_targets(parser)
    _add_single_loads(parser)
    _add_other_loads(parser)
    _add_results(parser)
    return parser


def _add_targets(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("targets (NAME= before one gives it a name in the results)")
    group.add_argument("--url", action="append", default=[], metavar="[NAME=]URL", help="a server that runs")
    group.add_argument(
        "--endpoint", action="append", default=[], metavar="[NAME=]ENDPOINT", help="a SageMaker endpoint"
    )
    group.add_argument(
        "--spawn",
        action="append",
        type=values.texts,
        default=[],
        metavar="[NAME=]ENGINE[,…]",
        help=f"start serve with an engine ({', '.join(ENGINES)}), or a peer ({', '.join(PEERS)}), in turn",
    )
    group.add_argument("--model", type=Path, metavar="DIR", help="for --spawn (the demo model)")
    group.add_argument(
        "--set", action="append", default=[], metavar="[NAME:]KEY=VALUE", help="environment of --spawn"
    )
    group.add_argument(
        "--together",
        action="store_true",
        help="start all of --spawn at once, so that their cells interleave (they share the GPU's memory: "
        f"GPTJ_MAX_BATCH_SIZE={TOGETHER_BATCH_SIZE} and the longest cell's GPTJ_MAX_CONTEXT unless set)",
    )
    group.add_argument(
        "--rounds",
        type=values.whole(1, 1000),
        default=1,
        help="without --together, how often engines take turns (1)",
    )


def _add_single_loads(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loads: one request at a time")
    loads = values.listed(values.one_of(LOADS))
    what = f"of {', '.join(LOADS)} (grid)"
    group.add_argument("--load", type=loads, default=["grid"], metavar="LOAD[,…]", help=what)
    lengths = values.wholes(1, 1 << 20)
    group.add_argument(
        "--inputs", type=lengths, default=[50, 200, 500, 1000], metavar="N[,…]", help="grid (50,200,500,1000)"
    )
    group.add_argument(
        "--outputs", type=lengths, default=[50, 100, 150, 200], metavar="N[,…]", help="grid (50,100,150,200)"
    )
    group.add_argument(
        "--runs", action="append", default=[], metavar="[NAME=]N", help="of each cell of the grid (20)"
    )
    cells = values.listed(_cell)
    group.add_argument(
        "--latency-cells", type=cells, default=[DEFAULT_CELL], metavar="IxO[,…]", help=f"({DEFAULT_CELL})"
    )
    group.add_argument(
        "--latency-runs", action="append", default=[], metavar="[NAME=]N", help="of each of them (100)"
    )


def _add_other_loads(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("loads: throughput, and starting")
    levels = [1, 2, 4, 8, 16, 32, 64]
    clients = f"({','.join(map(str, levels))})"
    group.add_argument(
        "--concurrency",
        type=values.wholes(1, 4096),
        default=levels,
        metavar="N[,…]",
        help=f"clients {clients}",
    )
    group.add_argument(
        "--requests-per-client",
        type=values.whole(1, 10_000),
        default=3,
        metavar="N",
        help="(3; at least 8 in all)",
    )
    rates = values.listed(values.number(0.001, 10_000))
    group.add_argument(
        "--rates", type=rates, default=[], metavar="R[,…]", help="requests a second that arrive (none)"
    )
    group.add_argument(
        "--open-seconds", type=values.number(0.1, 86_400), default=30, metavar="S", help="for so long (30)"
    )
    group.add_argument(
        "--throughput-cell", type=_cell, default=DEFAULT_CELL, metavar="IxO", help=f"({DEFAULT_CELL})"
    )
    group.add_argument(
        "--starts", type=values.whole(1, 1000), default=3, metavar="N", help="of the load called load (3)"
    )
    group.add_argument(
        "--build-kernels", action="store_true", help="each start compiles what is not prebuilt"
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, required=True, metavar="FILE", help="file of results, JSON")
    group.add_argument(
        "--retry-failed", action="store_true", help="forget failed runs of --out and make them again"
    )
    group.add_argument(
        "--seed", type=values.whole(0, 1 << 62), default=0, metavar="N", help="prompts, orders, arrivals (0)"
    )
    group.add_argument(
        "--timeout-s", type=values.number(1, 3600), default=600, metavar="S", help="for an answer (600)"
    )
    work = Path.home() / ".cache/gptj-benchmark"
    group.add_argument(
        "--work", type=Path, default=work, metavar="DIR", help=f"for peers' converted models ({work})"
    )
    group.add_argument("--commit", help="what is measured, where git does not tell")
    group.add_argument("--hardware", metavar="TEXT", help="what --url and --endpoint run on")
    bandwidth = values.number(0.1, 1e6)
    group.add_argument(
        "--bandwidth-gb-s", type=bandwidth, metavar="N", help="of the memory, instead of measuring it"
    )


def _cell(raw: str) -> Cell:
    input_tokens, _, output_tokens = raw.partition("x")
    number = values.whole(1, 1 << 20)
    try:
        return Cell(number(input_tokens), number(output_tokens))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{raw!r} must be input x output tokens such as 200x100") from None
