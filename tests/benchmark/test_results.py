"""The file of results: nothing is lost, nothing is mixed."""

import json
from pathlib import Path
from typing import Any

import pytest
from measurements import HARDWARE, MODEL, head, run, written

from gptj_serve.benchmark.results import ResultsFile, Run, read
from gptj_serve.errors import StartupError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    runs = [
        run("slow", 2.0, ttft_s=0.1, tpot_s=0.05, is_first=True),
        run("fast", 0.5, 1, load="throughput", rate=2.5, status=429, problem="full"),
        run("fast", 0.5, 2, load="throughput", concurrency=4),
    ]
    path = written(tmp_path / "r.json", runs)
    found = read(path)
    assert found.runs == runs
    assert (found.head["schema"], found.head["hardware"]) == (1, HARDWARE)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    # a line a run: differences between files stay readable
    assert sum('"load"' in line for line in path.read_text().splitlines()) == 3


def test_the_file_is_whole_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    results = ResultsFile.open(path, head())
    results.add([run("slow", 1.0)])
    results.save()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    results.add([run("slow", 1.0, 1)])
    with pytest.raises(StartupError, match=r"--out .*r.json: No space left on device"):
        results.save()
    assert len(read(path).runs) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["r.json"]


def test_runs_are_in_the_file_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = ResultsFile.open(tmp_path / "r.json", head())
    monkeypatch.setattr("gptj_serve.benchmark.results.SAVE_INTERVAL_S", -1.0)
    results.add([run("slow", 1.0)])  # no `save`, as if the process were killed now
    assert len(read(tmp_path / "r.json").runs) == 1


def test_going_on_keeps_what_is_there(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", [run("slow", 1.0), run("slow", 1.0, 1, problem="wrong length")])
    facts = {"more": {"kind": "url", "url": "http://a"}}
    results = ResultsFile.open(path, head(when="2027-01-01T00:00:00+00:00", targets=facts))
    assert len(results.runs) == 2
    assert results.head["when"].startswith("2026")
    assert list(results.head["targets"]) == ["slow", "fast", "more"]
    assert len(ResultsFile.open(path, head(), retry_failed=True).runs) == 1


def test_what_a_server_said_of_itself_stays(tmp_path: Path) -> None:
    """A target that is done is not started again, and its limit is still computed from its weights."""
    path = written(tmp_path / "r.json", [run("slow", 1.0)])
    known = {"kind": "spawn", "settings": {"GPTJ_FRONT": "http"}}
    results = ResultsFile.open(path, head(targets={"slow": known, "fast": known}))
    assert results.head["targets"] == head()["targets"]


def test_a_level_with_a_failure_is_made_again_as_a_whole(tmp_path: Path) -> None:
    two, four = ({"load": "throughput", "concurrency": number} for number in (2, 4))
    runs = [run("slow", 1.0, number, **two) for number in range(4)]
    broken = [run("slow", 1.0, 0, **four, problem="x"), *(run("slow", 1.0, n, **four) for n in (1, 2, 3))]
    others = [run("fast", 1.0, 0, **four), run("slow", 1.0)]
    path = written(tmp_path / "r.json", [*runs, *broken, *others])
    assert ResultsFile.open(path, head(), retry_failed=True).runs == [*runs, *others]


def test_a_file_with_nothing_measured_binds_nobody(tmp_path: Path) -> None:
    path = written(tmp_path / "r.json", [])
    facts = {"a": {"kind": "url", "url": "http://b"}}
    assert ResultsFile.open(path, head(commit="decaf", targets=facts)).head["commit"] == "decaf"
    assert read(path).head["targets"] == facts


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"commit": "decaf"}, "another commit (c0ffee then, decaf now)"),
        ({"hardware": {**HARDWARE, "gpu": "Card B"}}, "another hardware"),
        ({"versions": {"python": "3.13"}}, "another versions"),
        ({"model": {**MODEL, "fingerprint": "g"}}, "another model"),
        ({"seed": 1}, "another seed (0 then, 1 now)"),
        ({"targets": {"slow": {"settings": {"GPTJ_FRONT": "mms"}}}}, "another settings of slow"),
        ({"targets": {"fast": {"engine": "hf"}}}, "another engine of fast (fused then, hf now)"),
    ],
)
def test_going_on_elsewhere_is_refused(tmp_path: Path, changes: dict[str, Any], what: str) -> None:
    path = written(tmp_path / "r.json", [run("slow", 1.0)])
    before = path.read_text()
    with pytest.raises(StartupError) as error:
        ResultsFile.open(path, head(**changes))
    assert what in str(error.value)
    assert path.read_text() == before


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    good = json.loads(written(path, [run("slow", 1.0)]).read_text())

    def refusal(**changes: Any) -> str:
        path.write_text(
            json.dumps({name: value for name, value in (good | changes).items() if value is not ...})
        )
        with pytest.raises(StartupError) as error:
            read(path)
        return str(error.value)

    assert "schema 1" in refusal(schema=2)
    assert "'model' is missing" in refusal(model=...)
    assert "'targets' is []" in refusal(targets=[])
    assert "'targets' are no objects" in refusal(targets={"slow": 1})
    assert "'hardware' is None" in refusal(hardware=None)
    assert "'runs' is no list" in refusal(runs={})
    start = {"target": "nobody", "seconds": 1.0, "parts": {}, "loading": {}}
    assert "starts[0] is of none of 'targets'" in refusal(starts=[start])
    assert "starts[0] 'seconds' is '1'" in refusal(starts=[{**start, "seconds": "1"}])
    assert "memory[0] 'load' is missing" in refusal(memory=[{"target": "slow", "start": {}}])
    (one,) = good["runs"]
    assert "runs[0].seconds is '1'" in refusal(runs=[one | {"seconds": "1"}])
    assert "runs[0].seconds is 0.0: must be above 0" in refusal(runs=[one | {"seconds": 0.0}])
    assert "runs[0] has 'colour', which is no field" in refusal(runs=[one | {"colour": 1}])
    assert "missing 1 required" in refusal(runs=[{name: one[name] for name in one if name != "status"}])
    path.write_text("{")
    with pytest.raises(StartupError, match="no file of results"):
        read(path)


@pytest.mark.parametrize(
    ("one", "has_failed"),
    [
        (run("a", 1.0), False),
        (run("a", 1.0, problem="19 tokens"), True),
        (run("a", 1.0, status=429, problem="full"), True),
        (run("a", 1.0, status=429, problem="full", concurrency=3), True),
        (run("a", 1.0, status=429, problem="full", rate=3.0), False),
        (run("a", 1.0, status=503, problem="full", rate=3.0), False),
        (run("a", 1.0, status=500, problem="broken", rate=3.0), True),
    ],
)
def test_only_an_open_loop_may_be_refused(one: Run, has_failed: bool) -> None:
    assert one.has_failed == has_failed
