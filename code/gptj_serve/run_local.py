"""Serve on this machine: start ``serve``, show one completion and how to ask for it, wait for Ctrl-C.

The server's log goes to stderr, what is shown to stdout.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from gptj_serve import demo

REQUEST = {"inputs": "In the beginning God created", "parameters": {"max_new_tokens": 40}}


def main() -> int:
    """Run until ``serve`` ends; returns its exit code."""
    env = dict(os.environ)
    env.setdefault("GPTJ_MODEL_DIR", str(demo.MODEL_DIR))
    env.setdefault("GPTJ_HOST", "127.0.0.1")
    env.setdefault("GPTJ_PORT", "8080")
    taken = _taken(env)
    if taken:
        print(taken, file=sys.stderr)
        return 1
    print(f"Loading {env['GPTJ_MODEL_DIR']} ...", file=sys.stderr)
    serve = subprocess.Popen([sys.executable, "-m", "gptj_serve"], env=env, stdout=sys.stderr)
    # Ctrl-C reaches both processes; this one only waits for the other's orderly end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: serve.terminate())
    url = f"http://{env['GPTJ_HOST']}:{env['GPTJ_PORT']}"
    if _wait_until_ready(serve, url):
        _show_completion(url)
    return serve.wait()


def _taken(env: Mapping[str, str]) -> str | None:
    """Why the port cannot be had; None if it can (or is no number: ``serve`` says so better)."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((env["GPTJ_HOST"], int(env["GPTJ_PORT"])))
        except ValueError:
            return None
        except (OSError, OverflowError) as error:
            where = f"{env['GPTJ_HOST']}:{env['GPTJ_PORT']}"
            return f"Cannot listen on {where} ({error}). Choose a port: GPTJ_PORT=9000 scripts/run-local"
    return None


def _wait_until_ready(serve: "subprocess.Popen[bytes]", url: str) -> bool:
    while serve.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.1)
    return False


def _show_completion(url: str) -> None:
    body = json.dumps(REQUEST)
    started_s = time.monotonic()
    try:
        answer = _post(f"{url}/invocations", body)
    except OSError as error:
        print(f"The first request failed: {error}", file=sys.stderr)
        return
    seconds = time.monotonic() - started_s
    print(f"\nPrompt:      {REQUEST['inputs']}")
    print(f"Completion: {answer[0]['generated_text']}")
    print(f"             ({seconds:.2f} s)\n\nAsk for more:\n")
    print(f"  curl {url}/invocations -H 'Content-Type: application/json' \\\n    -d '{body}'\n")
    print("Ctrl-C ends the server.", flush=True)


def _post(url: str, body: str) -> Any:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
