"""Serves on this machine: starts ``serve``, shows a completion and how to ask for it, waits for Ctrl-C.

Usage: python -m gptj_serve.run_local [--check]

The server's log goes to stderr, and what is shown to stdout. A terminal gets only the log's warnings, in
plain words, unless ``GPTJ_LOG_LEVEL`` says otherwise. With ``--check`` nothing is started; it is only checked
what would fail, as far as that goes without any other package.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from typing import Any

from gptj_serve import demo, safe_path
from gptj_serve.children import die_with_parent
from gptj_serve.errors import StartupError
from gptj_serve.host.ports import check_port_is_free
from gptj_serve.models.model_dir import find_checkpoint
from gptj_serve.settings import LOG_LEVELS, Settings

REQUEST = {"inputs": "In the beginning God created", "parameters": {"max_new_tokens": 40}}


def main() -> int:
    """Run until ``serve`` ends; returns its exit code."""
    safe_path.leave_working_directory()
    is_terminal = sys.stderr.isatty()
    defaults = {
        "GPTJ_MODEL_DIR": str(demo.MODEL_DIR),
        "GPTJ_FRONT": "http",
        "GPTJ_HOST": "127.0.0.1",
        "GPTJ_PORT": "8080",
        "GPTJ_LOG_LEVEL": "warning" if is_terminal else "info",
    }
    unset = [name for name in defaults if not os.environ.get(name, "").strip()]
    env = {**os.environ, **{name: defaults[name] for name in unset}}
    try:
        # the most frequent mistakes are reported before there is a log
        settings = Settings.from_env(env)
        check_port_is_free(settings.host, settings.port)
        with contextlib.suppress(ImportError):  # a pickle cannot be checked before PyTorch is installed
            find_checkpoint(settings.model_dir, settings.model_as_given, settings.model_option)
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1
    if sys.argv[1:] == ["--check"]:
        return 0
    print(f"Loading {settings.model_dir} ...", file=sys.stderr)
    if settings.log_level != "debug":
        env["GPTJ_LOG_LEVEL"] = (
            "info"  # readiness is logged at this level; this process chooses what is shown
        )
    serve = _start(env)
    assert serve.stdout is not None
    for line in serve.stdout:
        _pass_on(line, settings, is_terminal)
    return serve.wait()


def _start(env: dict[str, str]) -> "subprocess.Popen[bytes]":
    """Start ``serve`` and pass each signal to end on to it.

    It has a session of its own, out of the terminal's reach: a Ctrl-C that reached both processes would reach
    it twice, and the second signal ends what still runs.
    """
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signals.remove(signal.SIGHUP)  # with nohup, the terminal's end is no reason to end
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    serve = subprocess.Popen(
        [sys.executable, "-m", "gptj_serve"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_become_serve,
    )
    for number in signals:
        signal.signal(number, lambda *_: serve.terminate())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    return serve


def _become_serve() -> None:
    die_with_parent(signal.SIGTERM)
    # serve unblocks the other signals when it can handle them, but leaves this one as it is
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _pass_on(line: bytes, settings: Settings, is_terminal: bool) -> None:
    """Pass a line of the log on; show a failed start in plain words, and a completion after a good one."""
    record = _read(line)
    if record.get("event") == "not_started":
        line = f"{record['message']}\n".encode()
    elif is_terminal and record.get("level") in LOG_LEVELS[LOG_LEVELS.index("warning") :]:
        words = [f"{record['process']}: {record['level']}: {record['message']}", record.get("traceback")]
        line = ("\n".join(filter(None, words)) + "\n").encode()
    hidden = LOG_LEVELS[: LOG_LEVELS.index(settings.log_level)]
    if record.get("level") not in hidden:
        with contextlib.suppress(OSError):  # that the terminal is gone is no reason to end before serve does
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    # when /ping answers, a front's workers may still be starting
    if record.get("event") == "ready":
        threading.Thread(target=_show_completion, args=(settings,), daemon=True).start()


def _read(line: bytes) -> dict[str, Any]:
    """Read a record of the log; empty for a line that is none, such as a traceback of ``serve`` itself."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _show_completion(settings: Settings) -> None:
    url = f"http://{settings.local_host}:{settings.port}"
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
    print(_curl(url, REQUEST))
    if settings.front == "http":
        print(f"Token by token:\n\n{_curl(url, {**REQUEST, 'stream': True}, '-N ')}")
        if settings.page:
            print(f"In a browser: {url}/\n")
    else:
        print("Without --front mms it also streams, has a page, and speaks OpenAI's API under /v1.\n")
    print("Ctrl-C ends the server.", flush=True)


def _curl(url: str, document: dict[str, Any], options: str = "") -> str:
    content = "-H 'Content-Type: application/json'"
    return f"  curl {options}{url}/invocations {content} \\\n    -d '{json.dumps(document)}'\n"


def _post(url: str, body: str) -> Any:
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main())
