"""The figures of GET /metrics, in Prometheus's text format; nothing is counted without prometheus-client."""

from functools import partial
from typing import Any

try:
    import prometheus_client
except ImportError:
    prometheus_client = None  # type: ignore[assignment]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Uncounted:
    """A counter, gauge or histogram that does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def labels(self, *_: Any) -> "Uncounted":
        return self

    def inc(self, amount: float = 1) -> None: ...
    def set(self, value: float) -> None: ...
    def observe(self, amount: float) -> None: ...
    def set_function(self, function: Any) -> None: ...


class Metrics:
    """The figures of one server, in their own registry."""

    def __init__(self) -> None:
        counter: Any = Uncounted
        gauge: Any = Uncounted
        histogram: Any = Uncounted
        if prometheus_client:
            registry = self._registry = prometheus_client.CollectorRegistry()
            prometheus_client.ProcessCollector(registry=registry)  # resident memory, CPU seconds, open files
            counter = partial(prometheus_client.Counter, namespace="retriever", registry=registry)
            gauge = partial(prometheus_client.Gauge, namespace="retriever", registry=registry)
            histogram = partial(prometheus_client.Histogram, namespace="retriever", registry=registry)

        self.requests = counter("requests", "Requests to /retrieve, by status", ["status"])
        self.request_seconds = histogram("request_seconds", "Seconds from request to reply", buckets=SECONDS)
        self.queries = counter("queries", "Queries: cached, joined to an equal one, or queued", ["how"])
        for how in ("cached", "joined", "queued"):
            self.queries.labels(how)  # start at 0, which rates need
        self.queue = gauge("queue_queries", "Distinct queries that wait for a batch")
        self.batch_queries = histogram("batch_queries", "Queries per batch", buckets=SIZES)
        self.batch_seconds = histogram("batch_seconds", "Seconds to encode and search a batch", buckets=SECONDS)
        self.cache = gauge("cache_queries", "Queries with cached hits")
        self._index = gauge("index", "The index: rows, dimension, bytes", ["what"])
        self._ready = gauge("ready", "1 when everything is loaded")

    def describe_index(self, about: dict[str, str | int]) -> None:
        """Records the numbers in `Retriever.describe()` and marks the server as ready."""
        for what, value in about.items():
            if isinstance(value, int):
                self._index.labels(what).set(value)
        self._ready.set(1)

    def text(self) -> bytes | None:
        """All figures in Prometheus's text format; None without prometheus-client."""
        return prometheus_client.generate_latest(self._registry) if prometheus_client else None
