"""Peers: they say what the model says, in exactly so many tokens, and only where they are installed."""

import asyncio
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTJForCausalLM

from gptj_serve import demo
from gptj_serve.benchmark import peers
from gptj_serve.benchmark.facts.model import model_facts
from gptj_serve.benchmark.peers import process_target, vllm_server
from gptj_serve.benchmark.peers.transformers_compiled import TransformersCompiled
from gptj_serve.benchmark.results import read
from gptj_serve.benchmark.run import command as run
from gptj_serve.benchmark.targets import processes
from gptj_serve.benchmark.targets.spawn import Spawn
from gptj_serve.benchmark.targets.target import Query
from gptj_serve.errors import StartupError
from gptj_serve.serving.text import Tokenizer

TOKENIZER = Tokenizer.load(demo.MODEL_DIR)
PROMPT = "In the beginning God created"


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """Transformers' own greedy continuation."""
    model = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)
    ids = torch.tensor([TOKENIZER.encode(PROMPT)])
    found = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False)  # type: ignore[operator]
    tokens: list[int] = found[0, ids.shape[1] :].tolist()
    return tokens


def test_the_static_cache_says_the_same(expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes a quarter of a minute; what is compiled is tested as it is."""
    asked: dict[str, Any] = {}

    def compile_nothing(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        asked.update(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_nothing)
    peer = TransformersCompiled(demo.MODEL_DIR, max_context=64)
    assert asked == {"mode": "reduce-overhead", "fullgraph": True}
    ids, told = TOKENIZER.encode(PROMPT), []
    assert peer.generate(ids, 12, None) == expected
    assert peer.generate(ids[:3], 5, None) != expected[:5]
    assert peer.generate(ids, 12, lambda: told.append(1)) == expected  # nothing is left of the call before
    assert len(told) == 12
    assert peer.facts["bytes_per_weight"] == 4


def asked_of(target: process_target.ProcessTarget, *asks: Query) -> list[Any]:
    async def ask_all() -> list[Any]:
        return [await target.ask(ask) for ask in asks]

    return asyncio.run(ask_all())


def test_ctranslate2_says_the_same(expected: list[int], tmp_path: Path) -> None:
    """Here and through its process; the model is converted once."""
    pytest.importorskip("ctranslate2")
    from gptj_serve.benchmark.peers.ctranslate2_peer import CTranslate2

    here = CTranslate2(demo.MODEL_DIR, tmp_path, "float32")
    assert here.generate(TOKENIZER.encode(PROMPT), 12, None) == expected
    (folder,) = tmp_path.iterdir()
    assert model_facts(demo.MODEL_DIR)["fingerprint"] in folder.name
    changed = (folder / "model.bin").stat().st_mtime_ns

    spawn = Spawn("peer", "ctranslate2", {process_target.TYPE: "float32"})
    with process_target.started(
        spawn, demo.MODEL_DIR, work=tmp_path, max_context=64, watch_memory=False
    ) as peer:
        assert isinstance(peer.target, process_target.ProcessTarget)
        whole, stream = asked_of(peer.target, Query(PROMPT, 12), Query(PROMPT, 12, stream=True))
        assert peer.facts == {"bytes_per_weight": 4, "compute_type": "float32"}
        assert peer.start["seconds"] > 0
    assert (whole.status, whole.completion_tokens) == (200, 12)
    assert whole.prompt_tokens == len(TOKENIZER.encode(PROMPT))
    assert (len(whole.token_s), len(stream.token_s)) == (0, 12)
    assert list(stream.token_s) == sorted(stream.token_s)
    assert stream.token_s[-1] <= stream.seconds
    assert (folder / "model.bin").stat().st_mtime_ns == changed


def test_ctranslate2_takes_a_model_with_more_rows_than_tokens(tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    from gptj_serve.benchmark.peers.ctranslate2_peer import CTranslate2

    model_dir = tmp_path / "model"
    shutil.copytree(demo.MODEL_DIR, model_dir)
    model = GPTJForCausalLM.from_pretrained(demo.MODEL_DIR, dtype=torch.float32)
    model.resize_token_embeddings(model.config.vocab_size + 30)
    model.save_pretrained(model_dir)
    peer = CTranslate2(model_dir, tmp_path, "float32")
    known = TOKENIZER.encode(PROMPT)
    for ids in (known, [model.config.vocab_size - 1, *known]):
        asked = torch.tensor([ids])
        found = model.generate(asked, max_new_tokens=12, min_new_tokens=12, do_sample=False)  # type: ignore[operator]
        assert peer.generate(ids, 12, None) == found[0, len(ids) :].tolist()


PEER = """
import json, sys
print(json.dumps({"facts": {}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["num_tokens"] == 1:
        print(json.dumps({"error": "ValueError: no"}), flush=True)
    if asked["num_tokens"] == 2:
        sys.exit(3)
"""


def test_a_peer_that_fails_and_one_that_ends() -> None:
    with processes.running([sys.executable, "-c", PEER], {}, stdin=-1, stdout=-1) as process:
        target = process_target.ProcessTarget("peer", process, TOKENIZER)
        assert target.first_line() == {"facts": {}}
        failed, *ended = asked_of(target, Query("a", 1), Query("a", 2), Query("a", 3))
    assert (failed.status, failed.error) == (500, "ValueError: no")
    assert [(one.status, one.error) for one in ended] == [(0, "it has ended")] * 2


@pytest.mark.parametrize(
    ("program", "why"),
    [('print(\'{"error": "OSError: no weights"}\')', "OSError: no weights"), ("", "it has ended")],
)
def test_a_peer_that_does_not_start(program: str, why: str) -> None:
    with processes.running([sys.executable, "-c", program], {}, stdin=-1, stdout=-1) as process:
        target = process_target.ProcessTarget("peer", process, TOKENIZER)
        with pytest.raises(StartupError, match=f"^peer did not start: {why}$"):
            target.first_line()


VLLM = """
import http.server, json, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ok = self.path == "/v1/completions" and asked["model"] == "gptj" and asked["ignore_eos"]
        counts = {"prompt_tokens": asked["prompt"].count(" "), "completion_tokens": asked["max_tokens"]}
        one = {"choices": [{"text": ""}], "usage": counts}
        last = {"choices": [], "usage": counts}
        events = [json.dumps(one)] * asked["max_tokens"] + [json.dumps(last), "[DONE]"]
        stream = "".join(f"data: {event}\\n\\n" for event in events)
        body = (stream if asked.get("stream") else json.dumps({"usage": counts})).encode()
        self.send_response(200 if ok else 400)
        self.send_header("content-type", "text/event-stream" if asked.get("stream") else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_vllms_server_is_spoken_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in: what vLLM itself makes of it is not tested here."""
    program = vllm_server.command(Path("/m"), 1234, 300)
    assert program[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert "--no-enable-prefix-caching" in program
    assert program[program.index("--max-model-len") + 1] == "300"

    def stand_in(_: Path, port: int, __: int) -> list[str]:
        return [sys.executable, "-c", VLLM, str(port)]

    monkeypatch.setattr(vllm_server, "command", stand_in)
    monkeypatch.setattr(run, "measure_in_child", lambda: None)  # it takes PyTorch to find no GPU
    monkeypatch.setattr(peers, "PEERS", peers.PEERS)
    monkeypatch.setitem(peers.PEERS, "vllm", "json")  # a package that is there
    out = tmp_path / "r.json"
    given = ["--spawn", "vllm", "--model", str(demo.MODEL_DIR), "--load", "grid,latency,throughput"]
    given += ["--inputs", "5", "--outputs", "3", "--runs", "2", "--latency-runs", "2", "--concurrency", "4"]
    assert run.main([*given, "--out", str(out)]) == 0
    results = read(out)
    assert {one.load for one in results.runs} == {"grid", "latency", "throughput"}
    assert not [one for one in results.runs if one.problem]
    assert results.head["targets"]["vllm"]["bytes_per_weight"] == 2


def test_an_absent_peer_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_in_child", lambda: None)
    out = tmp_path / "r.json"
    given = ["--spawn", "vllm", "--model", str(demo.MODEL_DIR), "--out", str(out)]
    if peers.missing("vllm") is None:
        pytest.skip("vLLM is installed")
    assert run.main(given) == 0
    why = "the package vllm is not installed"
    assert f"vllm is skipped: {why}" in capsys.readouterr().err
    assert read(out).head["skipped"] == {"vllm": why}
