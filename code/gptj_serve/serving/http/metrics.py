"""Keeps what ``/metrics`` shows, under names like vLLM's."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

import gptj_serve
from gptj_serve.request import EngineStats, ModelInfo

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
TOKEN_SECONDS = (0.001, 0.0025, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 600)


class Metrics:
    """Counts requests; the engine's own figures are asked for when the metrics are read.

    Args:
        info: What runs in the engine.
        stats: Gives what the engine last said about itself.

    Attributes:
        refused: Call this when a request found the queue full.
        cancelled: Call this when a client went away before its answer was complete.
        stream_opened: Call this when an answer begins to be streamed.
        stream_closed: Call this when the stream has ended.
    """

    def __init__(self, info: ModelInfo, stats: Callable[[], EngineStats]) -> None:
        # nobody needs a second sample beside every counter with the time when it was made
        disable_created_metrics()  # type: ignore[no-untyped-call]
        # the library's own registry would also show the process and the platform
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(stats))

        def histogram(name: str, what: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, what, buckets=buckets, registry=registry)

        self._first_token = histogram("gptj_time_to_first_token_seconds", "From arrival to the first token")
        self._per_token = histogram(
            "gptj_time_per_output_token_seconds", "Between tokens, mean of a request", TOKEN_SECONDS
        )
        self._duration = histogram("gptj_request_duration_seconds", "From arrival to the last token")
        self._queue = histogram("gptj_request_queue_seconds", "Waiting in the engine's queue")
        self._requests = Counter(
            "gptj_requests", "Requests answered", ["status", "schema"], registry=registry
        )
        self._answered: dict[tuple[str, int], Counter] = {}
        self.refused = Counter("gptj_requests_refused", "Refused for a full queue", registry=registry).inc
        self.cancelled = Counter(
            "gptj_requests_cancelled", "Given up by their clients", registry=registry
        ).inc
        streams = Gauge("gptj_streams_open", "Answers that are being streamed", registry=registry)
        self.stream_opened, self.stream_closed = streams.inc, streams.dec
        Info("gptj_build", "The service", registry=registry).info({"version": gptj_serve.__version__})
        Info("gptj_engine", "The engine", registry=registry).info(
            {
                "engine": info.engine,
                "batching": info.batching,
                "max_context": str(info.max_context),
                "max_batch_size": str(info.max_batch_size),
            }
        )

    def finished(
        self,
        schema: str,
        status: int,
        *,
        total_s: float = 0.0,
        first_token_s: float | None = None,
        queue_s: float | None = None,
        time_per_token_s: float | None = None,
    ) -> None:
        """Count a request that was answered.

        Args:
            schema: The schema that its client spoke.
            status: The answer's status; times are only kept for status 200.
            total_s: Seconds from arrival to the last token.
            first_token_s: Seconds from arrival to the first token.
            queue_s: Seconds in the engine's queue.
            time_per_token_s: Seconds between tokens.
        """
        # looking up a child costs more than all the rest, and there are few schemas and statuses
        answered = self._answered.get((schema, status))
        if answered is None:
            answered = self._answered[schema, status] = self._requests.labels(str(status), schema)
        answered.inc()
        if status != 200:
            return
        self._duration.observe(total_s)
        for value, kept in (
            (first_token_s, self._first_token),
            (queue_s, self._queue),
            (time_per_token_s, self._per_token),
        ):
            if value is not None:
                kept.observe(value)

    def render(self) -> tuple[bytes, str]:
        """The text exposition and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _EngineCollector(Collector):
    """Collects the engine's figures, which the engine counts."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        now = self._stats()
        usage = now.cache_tokens / now.cache_capacity_tokens if now.cache_capacity_tokens else 0.0
        gauges = (
            ("gptj_sequences_running", "Sequences in the running batch", now.num_running),
            ("gptj_sequences_waiting", "Sequences that wait for a batch", now.num_waiting),
            ("gptj_cache_usage_ratio", "Share of the KV cache in use", usage),
        )
        for name, what, value in gauges:
            yield GaugeMetricFamily(name, what, value=value)
        counters = (
            ("gptj_prompt_tokens", "Tokens of prompts that were started", now.num_prompt_tokens),
            ("gptj_generation_tokens", "Tokens generated", now.num_generated_tokens),
            ("gptj_engine_steps", "Steps of the engine", now.num_steps),
            ("gptj_sequences_finished", "Sequences that came to their end", now.num_finished),
            ("gptj_sequences_cancelled", "Sequences that were cancelled", now.num_cancelled),
            ("gptj_sequences_failed", "Sequences that failed", now.num_failed),
            ("gptj_preemptions", "Times a sequence gave its cache to an older one", now.num_preempted),
        )
        for name, what, value in counters:
            yield CounterMetricFamily(name, what, value=value)
