"""The figures of GET /metrics, in Prometheus's text format; nothing is counted without prometheus-client."""

from typing import Any

try:
    import prometheus_client
except ImportError:
    prometheus_client = None  # type: ignore[assignment]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Uncounted:
    """A counter, gauge or histogram that does nothing, whatever is called."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self


class Metrics:
    """The figures of one server, in their own registry."""

    def __init__(self) -> None:
        if prometheus_client:
            self._registry = prometheus_client.CollectorRegistry()
            prometheus_client.ProcessCollector(registry=self._registry)  # resident memory, CPU seconds, open files

        def new(kind: str, *named: Any, **options: Any) -> Any:
            if prometheus_client is None:
                return Uncounted()
            return getattr(prometheus_client, kind)(*named, namespace="retriever", registry=self._registry, **options)

        self.requests = new("Counter", "requests", "Requests to /retrieve, by status", ["status"])
        self.request_seconds = new("Histogram", "request_seconds", "Seconds from request to reply", buckets=SECONDS)
        self.queries = new("Counter", "queries", "Queries: cached, joined to an equal one, or queued", ["how"])
        for how in ("cached", "joined", "queued"):
            self.queries.labels(how)  # start at 0, which rates need
        self.queue = new("Gauge", "queue_queries", "Distinct queries that wait for a batch")
        self.batch_queries = new("Histogram", "batch_queries", "Queries per batch", buckets=SIZES)
        self.batch_seconds = new("Histogram", "batch_seconds", "Seconds to encode and search a batch", buckets=SECONDS)
        self.cache = new("Gauge", "cache_queries", "Queries with cached hits")
        self._index = new("Gauge", "index", "The index: rows, dimension, bytes", ["what"])
        self._ready = new("Gauge", "ready", "1 when everything is loaded")

    def describe_index(self, about: dict[str, str | int]) -> None:
        """Records the numbers in `Retriever.describe()` and marks the server as ready."""
        for what, value in about.items():
            if isinstance(value, int):
                self._index.labels(what).set(value)
        self._ready.set(1)

    def text(self) -> bytes | None:
        """All figures in Prometheus's text format; None without prometheus-client."""
        return prometheus_client.generate_latest(self._registry) if prometheus_client else None
