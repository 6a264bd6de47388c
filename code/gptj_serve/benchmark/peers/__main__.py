"""A peer's process: it reads requests from stdin and writes answers to stdout, a JSON object a line.

Usage: python -m gptj_serve.benchmark.peers --peer NAME --model DIR --work DIR --max-context N [--type TYPE]

The first line says that the model is loaded and has the peer's facts. A request has ``prompt_ids``,
``num_tokens`` and ``stream``. Its answer has ``completion_tokens`` and, for a stream, ``token_s``: after how
many seconds each token was there.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gptj_serve.benchmark.peers import ONE_AT_A_TIME
from gptj_serve.benchmark.peers.peer import Peer


def main() -> None:
    """Answer requests until there are no more."""
    parser = argparse.ArgumentParser(prog="gptj_serve.benchmark.peers")
    parser.add_argument("--peer", choices=ONE_AT_A_TIME, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--max-context", type=int, required=True)
    parser.add_argument("--type", help="of the weights, where the peer has several")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        peer = _load(args)
    except Exception as error:
        print(json.dumps({"error": _said(error)}), file=answers)
        return
    print(json.dumps({"facts": peer.facts}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_answer(peer, json.loads(line))), file=answers)


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    started_s, times_s = time.monotonic(), []

    def on_token() -> None:
        times_s.append(time.monotonic() - started_s)

    try:
        stream = on_token if request["stream"] else None
        ids = peer.generate(request["prompt_ids"], request["num_tokens"], stream)
    except Exception as error:  # whatever a peer raises is told in its answer
        return {"error": _said(error)}
    return {"completion_tokens": len(ids), "token_s": times_s}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _load(args: argparse.Namespace) -> Peer:
    """The peer that was asked for; the packages of the other need not be there."""
    if args.peer == "ctranslate2":
        from gptj_serve.benchmark.peers.ctranslate2_peer import CTranslate2

        return CTranslate2(args.model, args.work, args.type)
    from gptj_serve.benchmark.peers.transformers_compiled import TransformersCompiled

    return TransformersCompiled(args.model, args.max_context)


if __name__ == "__main__":
    main()
