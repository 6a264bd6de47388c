"""``scripts/benchmark run`` as a user has it: real servers, a command line, a file of results."""

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import psutil
import pytest
from measurements import head
from measurements import run as request

from gptj_serve import demo
from gptj_serve.benchmark.facts.memory import MemoryWatch
from gptj_serve.benchmark.front import fake_service
from gptj_serve.benchmark.report.statistics import level_tokens_per_s
from gptj_serve.benchmark.results import ResultsFile, Run, read
from gptj_serve.benchmark.run import command as run
from gptj_serve.errors import StartupError
from support.loopback_server import serving
from support.server import WAIT_TIMEOUT_S, WITHOUT_MODEL, least, until

TINY = ("--inputs", "5,9", "--outputs", "4,6", "--runs", "2", "--latency-cells", "5x4", "--latency-runs", "3")
LEVELS = ("--throughput-cell", "5x4", "--concurrency", "1,2", "--requests-per-client", "2")


def arguments(out: Path, *rest: str) -> list[str]:
    return [*rest, *TINY, *LEVELS, "--out", str(out), "--commit", "abc"]


def counts(results: ResultsFile) -> Counter[str]:
    return Counter(one.load for one in results.runs if not one.is_first)


@pytest.fixture(autouse=True)
def _no_gpu_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes PyTorch to find that there is none; `spawned` has looked for one."""
    monkeypatch.setattr(run, "measure_in_child", lambda: None)


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of everything, of one engine."""
    out = tmp_path_factory.mktemp("spawned") / "r.json"
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    loads = "grid,latency,throughput,memory,load"
    given = arguments(
        out, "--spawn", "fused", "--model", str(demo.MODEL_DIR), "--load", loads, "--starts", "1"
    )
    assert run.main(given) == 0
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before
    return out


def test_everything_of_an_engine_that_is_started(spawned: Path) -> None:
    results = read(spawned)
    assert counts(results) == {"grid": 8, "latency": 3, "throughput": 16}
    (first,) = [one for one in results.runs if one.is_first]
    assert (first.prompt_tokens, first.completion_tokens) == (50, 50)
    assert not [one for one in results.runs if one.problem]
    for one in results.runs:
        assert (one.prompt_tokens, one.completion_tokens) == (one.input_tokens, one.output_tokens)
        assert (one.ttft_s is not None) == (one.load != "grid")
        assert (one.ttft_s or 0.0) <= one.seconds  # the same if this process saw all of a stream at once
    assert any(one.ttft_s is not None and one.ttft_s < one.seconds for one in results.runs)
    facts = results.head["targets"]["fused"]
    assert (facts["engine"], facts["streams"]) == ("fused", True)
    assert facts["weight_bytes"] == 4 * results.head["model"]["num_weights"]
    (start,) = results.starts
    assert 0 < start["parts"]["load"] < start["seconds"]
    (memory,) = results.memory
    assert memory["load"]["rss_bytes"] >= memory["load"]["pss_bytes"] > 100 << 20


def test_the_same_command_again_does_nothing(spawned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read(spawned)
    given = arguments(spawned, "--spawn", "fused", "--model", str(demo.MODEL_DIR), "--load", "grid,latency")
    assert run.main(given) == 0
    assert "starting" not in capsys.readouterr().err
    assert read(spawned).runs == before.runs


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a front over an engine that gives every sequence 200 tokens a second."""
    with fake_service.running("http", 200, tmp_path_factory.mktemp("fake") / "log") as service:
        yield f"http://127.0.0.1:{service.port}"


def test_two_targets_take_turns(fake: str, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert run.main(arguments(out, "--url", f"a={fake}", "--url", f"b={fake}/invocations")) == 0
    grid = [one for one in read(out).runs if one.load == "grid"]
    assert [one.target for one in grid] == ["a", "b"] * 8
    pairs = list(zip(grid[::2], grid[1::2], strict=True))
    assert all((a.cell, a.number) == (b.cell, b.number) for a, b in pairs)
    starts = [one.started_s for one in grid]
    assert starts == sorted(starts)
    assert read(out).head["targets"]["a"]["engine"] == "fake"  # it said so itself


def test_throughput_of_an_engine_of_known_pace(fake: str, tmp_path: Path) -> None:
    """Every sequence gets 200 tokens a second, however many there are."""
    numbers, nearest = itertools.count(), [math.inf] * 4

    def farthest_of_all() -> float:
        found = distances_from_its_pace(fake, tmp_path / f"{next(numbers)}.json")
        nearest[:] = map(min, nearest, found)
        return max(nearest)

    assert least(farthest_of_all, 1, num_tries=8) < 1


def distances_from_its_pace(fake: str, out: Path) -> list[float]:
    """How far each figure is from what it should be, as a share of what is allowed."""
    loads = ("--load", "throughput", "--throughput-cell", "20x60", "--concurrency", "1,8")
    loads += ("--rates", "20", "--open-seconds", "1", "--requests-per-client", "2")
    assert run.main(["--url", f"fake={fake}", *loads, "--out", str(out)]) == 0
    by_level: dict[str, list[Run]] = {}
    for one in read(out).runs:
        if one.load == "throughput":
            by_level.setdefault(str(one.level), []).append(one)
    assert {level: len(runs) for level, runs in by_level.items()} == {
        "1 at once": 8,
        "8 at once": 16,
        "20 a second": 20,
    }
    begins = sorted(one.started_s for one in by_level["20 a second"])
    at_their_rate: list[float] = []
    for one in by_level["20 a second"]:  # none waits for another
        assert one.tpot_s is not None
        at_their_rate += [abs(one.seconds - 0.3) / 0.1, abs(one.tpot_s - 0.005) / 0.0005]
    return [
        abs(level_tokens_per_s(by_level["1 at once"]) - 200) / 20,
        abs(level_tokens_per_s(by_level["8 at once"]) - 8 * 200) / 240,
        abs(begins[-1] - begins[0] - 1.65) / 1.35,  # 19 gaps of 50 ms, on average
        max(at_their_rate),
    ]


class Odd(BaseHTTPRequestHandler):
    """Answers as its server's ``plan`` says, one thing after the other; by default as asked."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked)  # type: ignore[attr-defined]
        self.server.before_answer(asked)  # type: ignore[attr-defined]
        prompt_tokens, tokens = asked["prompt"].count(" "), asked["max_tokens"]
        status = 200
        if prompt_tokens == 9:  # of one cell; calibration and the other cell are in order
            tokens, status = next(self.server.plan, (tokens, 200))  # type: ignore[attr-defined]
        body: Any = {"usage": {"prompt_tokens": prompt_tokens, "completion_tokens": tokens}}
        if asked.get("stream"):
            status = 400
        if status != 200:
            body = {"error": {"message": f"no: {status}"}}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send_error(404)


@pytest.fixture
def odd() -> Iterator[Any]:
    with serving(Odd, asked=[], plan=iter(()), before_answer=lambda _: None) as server:
        yield server


def test_wrong_lengths_and_errors_are_marked(
    odd: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.json"
    given = ["--url", f"odd={odd.url}", "--inputs", "5,9", "--outputs", "4"]
    given += ["--runs", "3", "--out", str(out), "--commit", "abc"]
    odd.plan = iter([(4, 200), (3, 200), (4, 500)])  # the first is the warm-up
    assert run.main(given) == 1
    said = capsys.readouterr().err
    assert "9 tokens in and 3 out, not 9 and 4" in said
    assert "status 500: no: 500" in said
    problems = Counter((one.input_tokens, bool(one.problem)) for one in read(out).runs if one.load == "grid")
    assert problems == {(5, False): 3, (9, False): 1, (9, True): 2}
    # of exactly that length, and without chance
    assert all((one["ignore_eos"], one["temperature"]) == (True, 0) for one in odd.asked)
    odd.plan = iter(())
    assert run.main(given) == 1  # what failed stays, unless it is to be made again
    assert run.main([*given, "--retry-failed"]) == 0
    assert not [one for one in read(out).runs if one.has_failed]


def test_a_front_that_does_not_stream(odd: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    given = [
        "--url",
        f"odd={odd.url}",
        "--load",
        "latency",
        "--latency-cells",
        "5x4",
    ]
    assert run.main([*given, "--latency-runs", "2", "--out", str(out)]) == 0
    results = read(out)
    assert results.head["targets"]["odd"]["streams"] is False
    assert all(one.ttft_s and one.tpot_s is not None for one in results.runs if not one.is_first)


@pytest.mark.parametrize(("number", "says"), [(1, "1 run"), (0, "0 runs"), (2, "2 runs")])
def test_runs_are_counted_in_words(number: int, says: str) -> None:
    assert run._counted([request("fast", 1.0)] * number) == says


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(arguments(tmp_path / "r.json", "--url", "http://127.0.0.1:9")) == 1
    assert "127.0.0.1:9 does not answer" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--spawn", "fused", "--model", str(demo.MODEL_DIR), "--set", "GPTJ_MAX_CONTEXT=0")
    assert run.main(arguments(tmp_path / "r.json", *given)) == 1
    assert "fused did not start:\n" in (said := capsys.readouterr().err)
    assert "GPTJ_MAX_CONTEXT" in said


def test_memory_of_requests_that_fail_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", WITHOUT_MODEL["PYTHONPATH"])
    out = tmp_path / "r.json"
    given = ["--spawn", "fused", "--model", str(demo.MODEL_DIR), "--load", "memory", "--out", str(out)]
    assert run.main([*given, "--inputs", "2000", "--outputs", "100", "--throughput-cell", "5x4"]) == 1
    assert "memory of fused under load was not measured: status 400" in capsys.readouterr().err
    assert read(out).memory == []


def test_what_was_measured_of_nothing_is_not_taken_over(odd: Any, tmp_path: Path) -> None:
    """A file without a run may be another machine's, whose memory has another speed."""
    out = tmp_path / "r.json"
    ResultsFile.open(out, head(read_bytes_per_s=9e11)).save()
    given = ["--url", f"odd={odd.url}", "--inputs", "9", "--outputs", "20"]
    assert run.main([*given, "--runs", "1", "--out", str(out)]) == 0
    assert read(out).head["read_bytes_per_s"] is None


def test_runs_of_another_engine_are_not_added(tmp_path: Path) -> None:
    results = ResultsFile.open(tmp_path / "r.json", head(targets={"auto": {"kind": "spawn"}}))
    run._add_facts(results, "auto", {"engine": "fused"})
    run._add_facts(results, "auto", {"engine": "fused", "streams": True})
    with pytest.raises(StartupError, match="are of engine fused, and it has started hf"):
        run._add_facts(results, "auto", {"engine": "hf"})
    assert results.head["targets"]["auto"] == {"kind": "spawn", "engine": "fused", "streams": True}


def test_an_interrupted_measurement_goes_on(odd: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    given = ["--url", f"odd={odd.url}", "--inputs", "9", "--outputs", "20,30"]
    given += ["--runs", "12", "--out", str(out)]
    is_held, go_on, numbers = threading.Event(), threading.Event(), itertools.count()

    def hold_the_tenth(asked: Any) -> None:
        if asked["max_tokens"] in (20, 30) and next(numbers) == 9:  # those of cells
            is_held.set()
            go_on.wait()

    odd.before_answer = hold_the_tenth
    command = [sys.executable, "-m", "gptj_serve.benchmark", "run", *given]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert is_held.wait(WAIT_TIMEOUT_S)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
    go_on.set()
    assert (process.returncode, "the same command goes on from" in said) == (130, True)
    before = [one for one in read(out).runs if one.load == "grid"]
    assert len(before) == 9
    assert run.main(given) == 0
    after = [one for one in read(out).runs if one.load == "grid"]
    assert after[: len(before)] == before
    assert len({(one.cell, one.number) for one in after}) == len(after) == 24


@contextlib.contextmanager
def spawning(out: Path, *rest: str) -> Iterator["subprocess.Popen[str]"]:
    """A measurement that starts its server, without a model, in a process of its own."""
    given = ["--spawn", "fused", "--model", str(demo.MODEL_DIR), *rest, "--out", str(out), "--commit", "abc"]
    command = [sys.executable, "-m", "gptj_serve.benchmark", "run", *given]
    env = {**os.environ, **WITHOUT_MODEL}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env) as process:
        yield process
        process.kill()


def parts_of(process: "subprocess.Popen[str]", module: str) -> list[psutil.Process]:
    """Processes below one that run a module."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [one] if one.cmdline()[1:3] == ["-m", module] else []
    return found


def test_interrupted_again_and_again_it_still_ends_its_servers(tmp_path: Path) -> None:
    """`timeout -s INT` sends its signal twice, at once."""
    with spawning(tmp_path / "r.json") as process:
        (engine,) = until(lambda: parts_of(process, "gptj_serve.engine"))
        for _ in range(20):
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 130
    assert "the same command goes on from" in said
    assert "Traceback" not in said
    assert not engine.is_running()
    assert read(tmp_path / "r.json").runs == []


def test_a_server_that_dies_says_why_and_is_asked_no_more(tmp_path: Path) -> None:
    out, given = tmp_path / "r.json", ["--inputs", "5", "--outputs", "20", "--runs", "300"]
    with spawning(out, *given) as process:
        until(lambda: out.exists() and len(counts(read(out))) > 0)
        (engine,) = parts_of(process, "gptj_serve.engine")
        engine.kill()
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 1
    assert "fused does not answer any more" in said
    assert "the engine was killed (out of memory?)" in said
    failed = [one for one in read(out).runs if one.has_failed]
    assert 0 < len(failed) <= 4  # the one that was cut off, and three


def test_memory_is_watched_in_all_processes() -> None:
    child = "import subprocess, sys; x = b'x' * (200 << 20); subprocess.run(['sleep', '60'])"
    with subprocess.Popen([sys.executable, "-c", child]) as process:
        with MemoryWatch(process.pid) as watch:
            until(lambda: watch.peaks.get("num_processes") == 2)
        (sleeping,) = psutil.Process(process.pid).children()
        sleeping.kill()
        process.kill()
    assert watch.peaks["rss_bytes"] > watch.peaks["pss_bytes"] > 200 << 20


SMI = """#!/bin/sh
case "$1" in
  --query-compute-apps=*) cat "{apps}" ;;
  --query-gpu=memory.used) cat "{used}" ;;
esac
"""


@pytest.mark.parametrize("seen", [True, False])
def test_gpu_memory_is_the_processes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool) -> None:
    """In some containers the driver knows processes by other numbers: then all of the GPU counts."""
    apps, used, program = tmp_path / "apps", tmp_path / "used", tmp_path / "nvidia-smi"
    program.write_text(SMI.format(apps=apps, used=used))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    pid = os.getpid()
    apps.write_text(f"{pid if seen else pid + 1}, 700\n999999, 5000\n")
    used.write_text("6000\n")
    with MemoryWatch(pid, gpu_before=5000 << 20) as watch:
        until(lambda: "gpu_bytes" in watch.peaks)
    assert watch.peaks["gpu_bytes"] == (700 if seen else 1000) << 20
    assert watch.peaks["gpu_counts"] == ("processes" if seen else "whole GPU")
