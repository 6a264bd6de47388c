"""``/metrics`` as a scraper reads it."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import gptj_serve
from gptj_serve.request import EngineStats, ModelInfo
from gptj_serve.serving.http.metrics import Metrics

INFO = ModelInfo("hf", "/model", max_context=2048, max_batch_size=8, vocab_size=50400, eos_token_ids=(50256,))

COUNTERS = {
    "gptj_requests": {"status", "schema"},
    "gptj_requests_refused": set(),
    "gptj_requests_cancelled": set(),
    "gptj_prompt_tokens": set(),
    "gptj_generation_tokens": set(),
    "gptj_engine_steps": set(),
    "gptj_sequences_finished": set(),
    "gptj_sequences_cancelled": set(),
    "gptj_sequences_failed": set(),
    "gptj_preemptions": set(),
}
GAUGES = {
    "gptj_sequences_running",
    "gptj_sequences_waiting",
    "gptj_cache_usage_ratio",
    "gptj_streams_open",
}
INFOS = {
    # the text format has no type for them
    "gptj_build_info": {"version"},
    "gptj_engine_info": {"engine", "batching", "max_context", "max_batch_size"},
}
HISTOGRAMS = {
    "gptj_time_to_first_token_seconds",
    "gptj_time_per_output_token_seconds",
    "gptj_request_duration_seconds",
    "gptj_request_queue_seconds",
}


class Engine:
    """Says what the test has set."""

    def __init__(self) -> None:
        self.stats = EngineStats()

    def __call__(self) -> EngineStats:
        return self.stats


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def metrics(engine: Engine) -> Metrics:
    return Metrics(INFO, engine)


def families(metrics: Metrics) -> dict[str, Any]:
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain; version=")
    found = list(text_string_to_metric_families(body.decode()))
    assert len(found) == len({family.name for family in found})
    return {family.name: family for family in found}


def values(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(metrics).values()
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return values(metrics)[name, tuple(sorted(labels.items()))]


def use_all(metrics: Metrics) -> None:
    metrics.finished("tgi", 200, total_s=2.0, first_token_s=0.5, queue_s=0.002, time_per_token_s=0.03)
    metrics.finished("openai", 400)
    metrics.refused()
    metrics.cancelled()
    metrics.stream_opened()


def test_every_name_and_label(metrics: Metrics) -> None:
    use_all(metrics)
    found = families(metrics)
    assert set(found) == COUNTERS.keys() | GAUGES | INFOS.keys() | HISTOGRAMS
    for name, family in found.items():
        kind = "counter" if name in COUNTERS else "histogram" if name in HISTOGRAMS else "gauge"
        assert family.type == kind, name
        assert family.documentation
        labels = COUNTERS.get(name, INFOS.get(name, set()))
        for sample in family.samples:
            assert math.isfinite(sample.value)
            assert set(sample.labels) - ({"le"} if name in HISTOGRAMS else set()) == labels
            if name in COUNTERS:
                assert sample.name == name + "_total"


def test_two_do_not_share_a_registry(engine: Engine) -> None:
    one, other = Metrics(INFO, engine), Metrics(INFO, engine)
    one.refused()
    assert value(other, "gptj_requests_refused_total") == 0


def test_a_request(metrics: Metrics) -> None:
    use_all(metrics)
    assert value(metrics, "gptj_requests_total", status="200", schema="tgi") == 1
    assert value(metrics, "gptj_requests_total", status="400", schema="openai") == 1
    assert value(metrics, "gptj_requests_refused_total") == 1
    assert value(metrics, "gptj_requests_cancelled_total") == 1
    sums = {"gptj_time_to_first_token": 0.5, "gptj_time_per_output_token": 0.03}
    sums |= {"gptj_request_duration": 2.0, "gptj_request_queue": 0.002}
    for name, seconds in sums.items():
        # the 400 has no times
        assert value(metrics, f"{name}_seconds_count") == 1
        assert value(metrics, f"{name}_seconds_sum") == pytest.approx(seconds)


def test_what_is_not_known_is_not_counted(metrics: Metrics) -> None:
    metrics.finished("plain", 200, total_s=0.1)
    assert value(metrics, "gptj_request_duration_seconds_count") == 1
    assert value(metrics, "gptj_time_to_first_token_seconds_count") == 0
    assert value(metrics, "gptj_time_per_output_token_seconds_count") == 0
    assert value(metrics, "gptj_request_queue_seconds_count") == 0


@pytest.mark.parametrize("name", sorted(HISTOGRAMS))
def test_buckets(metrics: Metrics, name: str) -> None:
    samples = families(metrics)[name].samples
    limits = [float(sample.labels["le"]) for sample in samples if sample.name == name + "_bucket"]
    assert limits == sorted(set(limits))
    assert limits[0] == (0.001 if "per_output" in name else 0.005)
    assert limits[-2:] == [600, math.inf]


def test_gauges_follow_the_engine(metrics: Metrics, engine: Engine) -> None:
    assert value(metrics, "gptj_cache_usage_ratio") == 0  # of nothing
    for running, waiting, used in ((3, 5, 250), (0, 0, 0)):
        engine.stats = EngineStats(
            num_running=running, num_waiting=waiting, cache_tokens=used, cache_capacity_tokens=1000
        )
        assert value(metrics, "gptj_sequences_running") == running
        assert value(metrics, "gptj_sequences_waiting") == waiting
        assert value(metrics, "gptj_cache_usage_ratio") == used / 1000


def test_the_engines_counters(metrics: Metrics, engine: Engine) -> None:
    engine.stats = EngineStats(
        num_steps=11,
        num_prompt_tokens=12,
        num_generated_tokens=13,
        num_finished=14,
        num_cancelled=15,
        num_failed=16,
        num_preempted=17,
    )
    assert value(metrics, "gptj_engine_steps_total") == 11
    assert value(metrics, "gptj_prompt_tokens_total") == 12
    assert value(metrics, "gptj_generation_tokens_total") == 13
    assert value(metrics, "gptj_sequences_finished_total") == 14
    assert value(metrics, "gptj_sequences_cancelled_total") == 15
    assert value(metrics, "gptj_sequences_failed_total") == 16
    assert value(metrics, "gptj_preemptions_total") == 17


def test_streams_open(metrics: Metrics) -> None:
    metrics.stream_opened()
    metrics.stream_opened()
    metrics.stream_closed()
    assert value(metrics, "gptj_streams_open") == 1


def test_counters_never_fall(metrics: Metrics, engine: Engine) -> None:
    before: dict[Any, float] = {}
    for turn in range(5):
        use_all(metrics)
        engine.stats = EngineStats(num_steps=turn, num_finished=turn // 2, num_running=5 - turn)
        after = values(metrics)
        assert before.keys() <= after.keys()
        for key, was in before.items():
            name = key[0]
            if name.endswith(("_total", "_count", "_sum", "_bucket")):
                assert after[key] >= was, key
        before = after


@pytest.mark.parametrize(("name", "batching"), [("hf", "static"), ("fused", "continuous")])
def test_info(engine: Engine, name: str, batching: str) -> None:
    metrics = Metrics(replace(INFO, engine=name, batching=batching), engine)
    assert value(metrics, "gptj_build_info", version=gptj_serve.__version__) == 1
    labels = {"engine": name, "batching": batching, "max_context": "2048", "max_batch_size": "8"}
    assert value(metrics, "gptj_engine_info", **labels) == 1


def test_counting_is_cheap(metrics: Metrics) -> None:
    started_s = time.process_time()
    for _ in range(10_000):
        metrics.finished("tgi", 200, total_s=2.0, first_token_s=0.5, queue_s=0.002, time_per_token_s=0.03)
    each_s = (time.process_time() - started_s) / 10_000
    print(f"{each_s * 1e6:.1f} microseconds a request")
    assert each_s < 1e-3
