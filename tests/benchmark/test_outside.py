"""Another project's load generator, unmodified, measures what we measure.

    python -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install guidellm
    GUIDELLM=/tmp/guidellm/bin/guidellm scripts/test -m outside tests/benchmark/test_outside.py -s

The server is the HTTP front over an engine without a model, whose pace is known and steady: what differs
comes from the two clients.
"""

import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptj_serve import demo
from gptj_serve.benchmark.front import fake_service
from gptj_serve.benchmark.report.statistics import level_tokens_per_s
from gptj_serve.benchmark.results import read
from gptj_serve.benchmark.run import command as run

GUIDELLM = os.environ.get("GUIDELLM") or shutil.which("guidellm")
PROMPT_S, TOKENS_PER_S = 0.25, 100
INPUT_TOKENS, OUTPUT_TOKENS = 200, 100
REQUESTS_PER_CLIENT = 6

pytestmark = [pytest.mark.outside, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    log = tmp_path_factory.mktemp("fake") / "log"
    with fake_service.running("http", TOKENS_PER_S, log, prompt_s=PROMPT_S) as service:
        yield service.port


@pytest.mark.parametrize("clients", [1, 4, 16])
def test_guidellms_figures_are_ours(port: int, clients: int, tmp_path: Path) -> None:
    theirs, ours = (
        guidellms(port, clients, tmp_path / "guidellm.json"),
        own(port, clients, tmp_path / "r.json"),
    )
    print(f"\n{clients} clients: guidellm {theirs}, ours {ours}")
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], rel=0.05), name
    assert ours["time between tokens, ms"] == pytest.approx(1000 / TOKENS_PER_S, rel=0.02)


def guidellms(port: int, clients: int, out: Path) -> dict[str, float]:
    """What guidellm says."""
    if GUIDELLM is None:
        pytest.skip("guidellm is not installed (GUIDELLM names it)")
    command = [GUIDELLM, "run", "--disable-console", "--output", f"kind=json,path={out}"]
    command += [
        "--backend",
        f"kind=openai_http,target=http://127.0.0.1:{port},request_format=/v1/completions",
    ]
    command += ["--profile", f"kind=concurrent,streams={clients}"]
    command += ["--constraint", f"kind=max_requests,count={clients * REQUESTS_PER_CLIENT}"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={demo.MODEL_DIR}"]
    lengths = f"prompt_tokens={INPUT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    command += ["--data", f"kind=synthetic_text,{lengths}"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, env=env | {"HF_HUB_OFFLINE": "1"}, check=True, timeout=200)
    (benchmark,) = json.loads(out.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert (len(requests["successful"]), requests["errored"]) == (clients * REQUESTS_PER_CLIENT, [])
    assert {request["output_tokens"] for request in requests["successful"]} == {OUTPUT_TOKENS}
    metrics = benchmark["metrics"]
    return {
        "tokens/s": metrics["output_tokens_per_second"]["successful"]["mean"],
        "first token, ms": metrics["time_to_first_token_ms"]["successful"]["median"],
        "time between tokens, ms": metrics["inter_token_latency_ms"]["successful"]["median"],
        "whole call, s": metrics["request_latency"]["successful"]["median"],
    }


def own(port: int, clients: int, out: Path) -> dict[str, float]:
    """What we say of the same load."""
    given = ["--url", f"fake=http://127.0.0.1:{port}", "--load", "throughput", "--concurrency", str(clients)]
    given += ["--throughput-cell", f"{INPUT_TOKENS}x{OUTPUT_TOKENS}", "--out", str(out)]
    assert run.main([*given, "--requests-per-client", str(REQUESTS_PER_CLIENT)]) == 0
    runs = [one for one in read(out).runs if one.load == "throughput"]
    return {
        "tokens/s": level_tokens_per_s(runs),
        "first token, ms": 1000 * statistics.median(one.ttft_s or 0.0 for one in runs),
        "time between tokens, ms": 1000 * statistics.median(one.tpot_s or 0.0 for one in runs),
        "whole call, s": statistics.median(one.seconds for one in runs),
    }
