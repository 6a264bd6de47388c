"""The table of docs/operations.md is what the code says, and the code says what was measured."""

import json
import statistics
from typing import Any

import pytest

from gptj_serve.aws.machines import costs
from gptj_serve.aws.machines.instances import all_gpu_instances
from support.server import ROOT

BENCHMARKS = ROOT / "docs/benchmarks"


def runs(name: str, *lengths: int) -> list[dict[str, Any]]:
    """The requests of `fused` with so many tokens in and out."""
    found = json.loads((BENCHMARKS / name).read_text())["runs"]
    keys = ("input_tokens", "output_tokens")
    return [one for one in found if (one["target"], *(one[key] for key in keys)) == ("fused", *lengths)]


def test_the_page_has_the_table() -> None:
    assert costs.table() in (ROOT / "docs/operations.md").read_text()


def test_measured_speed_is_the_benchmark_s() -> None:
    speed = costs.MEASURED["H100 80GB"]
    seconds = [one["seconds"] for one in runs("grid-h100.json", 50, 200)]
    assert speed.alone == pytest.approx(200 / statistics.mean(seconds), abs=0.05)
    together = [
        one
        for one in runs("serve-h100-fused.json", 200, 100)
        if (one["load"], one.get("concurrency")) == ("throughput", speed.num_together)
    ]
    ended_s = max(one["started_s"] + one["seconds"] for one in together)
    num_tokens = sum(one["completion_tokens"] for one in together)
    pace = num_tokens / (ended_s - min(one["started_s"] for one in together))
    assert speed.together == pytest.approx(pace, abs=1)


def test_the_formula_holds_where_it_was_measured() -> None:
    (gpu,) = {one.gpu for one in all_gpu_instances() if one.gpu and one.gpu.name == "H100 80GB"}
    assert costs.computed(gpu, 1, 0) == pytest.approx(costs.MEASURED[gpu.name].alone, rel=0.05)
    decoding = json.loads((BENCHMARKS / "decode-h100.json").read_text())["context_250"]["16"]
    assert costs.computed(gpu, 16, 250) == pytest.approx(decoding["tokens_per_s"], rel=0.1)


def test_a_price() -> None:
    assert costs.usd_a_million(3.6, 1000) == pytest.approx(1.0)


def test_every_type_in_the_table_is_known() -> None:
    assert len(costs.table().splitlines()) == 2 + len(costs.INSTANCES)
