"""
Prometheus metrics of a server, which `prometheus_client` writes.

    metrics = Metrics(engine)
    with metrics.open_requests.track_inprogress():
        ...
    metrics.text()
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from memreason_hf.serving.api.engine import Engine


_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """
    The metrics of one server, in a registry of their own.

    Attributes:
        open_requests: requests that are read, wait or run.
        requests: finished requests, by endpoint and status.
        errors: refused and failed requests, by kind.
        seconds, first_token_seconds: by endpoint; from the last byte of a request to its last token, or its first.
        prompt_tokens: tokens of prompts.
        cancelled: requests whose clients have gone.
    """

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(engine))
        where = {"registry": self.registry}
        self.open_requests = Gauge("memreason_open_requests", "Requests that are read, wait or run.", **where)
        self.requests = Counter("memreason_requests", "Finished requests, by status.", ("endpoint", "status"), **where)
        self.errors = Counter("memreason_errors", "Refused and failed requests, by kind.", ("kind",), **where)
        self.prompt_tokens = Counter("memreason_prompt_tokens", "Tokens of the prompts.", **where)
        self.cancelled = Counter("memreason_cancelled_requests", "Requests whose clients have gone.", **where)
        self.seconds = Histogram(
            "memreason_request_seconds", "Time of a request.", ("endpoint",), buckets=_SECONDS, **where
        )
        self.first_token_seconds = Histogram(
            "memreason_first_token_seconds", "Time to the first token.", ("endpoint",), buckets=_SECONDS, **where
        )

    def text(self) -> bytes:
        """All metrics, in the text format of Prometheus."""
        return generate_latest(self.registry)


class _EngineCollector:
    """Reads the engine at the moment of the scrape."""

    def __init__(self, engine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        counters = self.engine.counters
        stats = counters.stats
        total = stats.slots_total
        gauges = {
            "memreason_engine_up": ("1 while the model answers requests.", float(self.engine.failure is None)),
            "memreason_waiting_requests": ("Sequences that wait for a place in the batch.", stats.waiting),
            "memreason_running_requests": ("Sequences in the batch.", stats.running),
            "memreason_slots_used": ("Places of keys and values that are in use.", stats.slots_used),
            "memreason_slots": ("Places of keys and values.", total),
            "memreason_slot_occupancy": ("Share of the places in use.", stats.slots_used / total if total else 0.0),
            "memreason_tokens_per_second": ("Over the last ten seconds.", counters.tokens_per_second()),
            "memreason_mean_recurrences": ("Recurrences of a generated token.", counters.mean_recurrences),
        }
        for name, (meaning, value) in gauges.items():
            yield GaugeMetricFamily(name, meaning, value=value)
        counts = {
            "memreason_generated_tokens": ("Tokens of the answers.", counters.tokens),
            "memreason_recurrences": ("Recurrences of the generated tokens.", counters.recurrences),
            "memreason_engine_failures": ("Steps that raised an error.", counters.failures),
        }
        for name, (meaning, value) in counts.items():
            yield CounterMetricFamily(name, meaning, value=value)
