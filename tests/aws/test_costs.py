"""The table of docs/operations.md is what the code says, and the code says what was measured."""

import json

import pytest

from gptj_serve.aws import costs
from gptj_serve.aws.instances import all_gpu_instances
from harness import ROOT

MEASURED = json.loads((ROOT / "docs/benchmarks/latency-h100-fused.json").read_text())["engines"]["fused"]


def test_the_page_has_the_table() -> None:
    assert costs.table() in (ROOT / "docs/operations.md").read_text()


def test_measured_speed_is_the_benchmark_s() -> None:
    speed = costs.MEASURED["H100 80GB"]
    (cell,) = [one for one in MEASURED["cells"] if (one["input_tokens"], one["output_tokens"]) == (50, 200)]
    assert speed.alone == pytest.approx(cell["tokens_per_s"], abs=0.05)
    assert speed.together == pytest.approx(MEASURED["together_tokens_per_s"][str(speed.num_together)], abs=1)


def test_the_formula_holds_where_it_was_measured() -> None:
    (gpu,) = {one.gpu for one in all_gpu_instances() if one.gpu and one.gpu.name == "H100 80GB"}
    assert costs.computed(gpu, 1, 0) == pytest.approx(costs.MEASURED[gpu.name].alone, rel=0.05)
    # docs/benchmarks: 16 sequences after 250 tokens, decoding alone
    assert costs.computed(gpu, 16, 250) == pytest.approx(3313, rel=0.1)


def test_a_price() -> None:
    assert costs.usd_a_million(3.6, 1000) == pytest.approx(1.0)


def test_every_type_in_the_table_is_known() -> None:
    assert len(costs.table().splitlines()) == 2 + len(costs.INSTANCES)
