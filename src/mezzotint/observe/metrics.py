"""Metrics: every number that Mezzotint publishes, in one catalogue.

A metric exists because it stands in :data:`CATALOGUE`; counting under another
name is a mistake in our code and raises at once. Numbers live in a registry of
our own, so that a program which embeds Mezzotint keeps its own apart.

The library behind them is imported by the first number: a command that counts
nothing does without.
"""

import threading
from typing import Any, Literal, NamedTuple

__all__ = ["CATALOGUE", "CONTENT_TYPE", "Metric", "Metrics", "count", "measure", "render", "set_to"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)


class Metric(NamedTuple):
    """What a metric counts, in which unit, by which labels."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


CATALOGUE: dict[str, Metric] = {
    "mezzotint_requests_total": Metric(
        "counter", "Requests by door and how they ended.", ("door", "status")
    ),
    "mezzotint_images_total": Metric("counter", "Finished pictures.", ("model",)),
    "mezzotint_attempts_total": Metric(
        "counter", "Attempts at pictures that gates judged.", ("model", "accepted")
    ),
    "mezzotint_steps_total": Metric("counter", "Solver steps taken by images.", ("model",)),
    "mezzotint_network_calls_total": Metric("counter", "Calls of denoising networks.", ("model",)),
    "mezzotint_batch_rows": Metric(
        "histogram", "Rows of one network call, guidance rows included.", ("model",), _ROWS
    ),
    "mezzotint_request_seconds": Metric(
        "histogram",
        "Seconds from a request's arrival at the engine to its end.",
        ("model",),
        _SECONDS,
    ),
    "mezzotint_stage_seconds": Metric(
        "histogram", "Seconds one image spent in a stage.", ("stage",), _SECONDS
    ),
    "mezzotint_queue_images": Metric("gauge", "Images that wait."),
    "mezzotint_running_images": Metric("gauge", "Images that hold tensors."),
    "mezzotint_memory_bytes": Metric(
        "gauge",
        "Bytes of tensors: what running images hold, and the weights of each loaded model.",
        ("kind", "model"),
    ),
    "mezzotint_memory_budget_bytes": Metric(
        "gauge", "Bytes that tensors of requests and weights may take; 0 is no bound.", ("kind",)
    ),
    "mezzotint_cache_lookups_total": Metric("counter", "Look-ups in a cache.", ("cache", "answer")),
    "mezzotint_model_load_seconds": Metric(
        "histogram",
        "Seconds to read and compile a model for its first picture.",
        ("model",),
        _SECONDS,
    ),
    "mezzotint_worker_restarts_total": Metric("counter", "Restarts of the engine's process."),
    "mezzotint_replica_up": Metric(
        "gauge", "Whether a front may send to a replica of the cluster.", ("node", "replica")
    ),
    "mezzotint_replica_backlog_seconds": Metric(
        "gauge", "Seconds of work that a replica has, by estimate.", ("node", "replica")
    ),
    "mezzotint_replicas_wanted": Metric(
        "gauge", "Replicas that a deployment should have.", ("deployment",)
    ),
    "mezzotint_deployment_backlog_seconds": Metric(
        "gauge", "Seconds of work that all fronts have for a deployment.", ("deployment",)
    ),
    "mezzotint_lobby_requests": Metric("gauge", "Requests that no replica can have now."),
    "mezzotint_replicas_lost_total": Metric("counter", "Replicas that were lost, not ended."),
    "mezzotint_auth_failures_total": Metric("counter", "Requests without a good key.", ("door",)),
}


class Metrics:
    """The catalogue with numbers behind it; safe to use from any thread.

    Args:
        catalogue: What may be counted.
    """

    def __init__(self, catalogue: dict[str, Metric] | None = None) -> None:
        self._catalogue = CATALOGUE if catalogue is None else catalogue
        self._registry: Any = None  # prometheus_client's, from the first number on
        self._made: dict[str, Any] = {}
        self._found: dict[tuple[Any, ...], Any] = {}
        self._lock = threading.Lock()

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        self._metric("counter", name, labels).inc(amount)

    def set_to(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._metric("gauge", name, labels).set(value)

    def measure(self, name: str, value: float, **labels: str) -> None:
        """Add an observation to a histogram."""
        self._metric("histogram", name, labels).observe(value)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, UTF-8; see :data:`CONTENT_TYPE`."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry) if self._registry is not None else b""

    def _metric(self, kind: str, name: str, labels: dict[str, str]) -> Any:
        """Return the metric for one set of labels, made on first use.

        Raises:
            KeyError: If it is not in the catalogue.
            TypeError: If it is of another kind there.
        """
        if self._catalogue[name].kind != kind:
            raise TypeError(f"{name} is no {kind}")
        key = (name, *labels.items())
        found = self._found.get(key)
        if found is not None:
            return found
        with self._lock:
            if name not in self._made:
                self._made[name] = self._make(name, self._catalogue[name])
            metric = self._made[name]
            if self._catalogue[name].labels:
                metric = metric.labels(**labels)
            self._found[key] = metric
        return metric

    def _make(self, name: str, entry: Metric) -> Any:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        if self._registry is None:
            self._registry = CollectorRegistry()
        if entry.kind == "histogram":
            return Histogram(
                name, entry.help, entry.labels, registry=self._registry, buckets=entry.buckets
            )
        kind = Counter if entry.kind == "counter" else Gauge
        return kind(name, entry.help, entry.labels, registry=self._registry)


_SHARED = Metrics()
count = _SHARED.count
measure = _SHARED.measure
render = _SHARED.render
set_to = _SHARED.set_to
