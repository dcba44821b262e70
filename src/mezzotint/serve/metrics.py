"""Metrics of the server, for the metrics listener.

Names with ``ts_`` are those TorchServe's dashboards read; the others are ours.
What the engine counts comes through the service's ``health`` as plain numbers
and is shown under its own names.
"""

import platform
import re
from collections.abc import Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from mezzotint.serve.wire import Visit

__all__ = ["ServerMetrics"]

_SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_NAME = re.compile(r"^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^{}\n]*\})?$")
_STAGES = ("queue", "encode", "denoise", "decode", "gate", "write")


class ServerMetrics:
    """Counts what goes through the doors."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        at = {"registry": self._registry}
        self._answers = Counter(
            "mezzotint_http_answers", "Answers by dialect and status", ["dialect", "status"], **at
        )
        self._seconds = Histogram(
            "mezzotint_http_seconds", "Seconds from request to answer", ["dialect"],
            buckets=_SECONDS, **at,
        )  # fmt: skip
        self._images = Counter("mezzotint_images", "Finished pictures", ["model", "dialect"], **at)
        self._cache = Counter("mezzotint_result_cache", "Answers by cache", ["cache"], **at)
        self._stages = Counter(
            "mezzotint_stage_seconds", "Seconds by stage, summed over pictures", ["stage"], **at
        )
        self._running = Gauge("mezzotint_generations_running", "Generations in flight", **at)
        self._jobs = Gauge("mezzotint_jobs", "Jobs by status", ["status"], **at)
        labels = ["model_name", "model_version", "hostname"]
        self._ts_requests = Counter("ts_inference_requests", "Inferences", labels, **at)
        self._ts_latency = Counter("ts_inference_latency_microseconds", "Latency", labels, **at)
        self._ts_queue = Counter("ts_queue_latency_microseconds", "Time in the queue", labels, **at)
        level = ["Level", "Hostname"]
        self._classes = {
            kind: Counter(f"Requests{kind}XX", f"Answers {kind}xx", level, **at) for kind in "245"
        }
        for counter in self._classes.values():
            counter.labels("Host", platform.node())

    def answered(self, here: Visit, status: int, seconds: float) -> None:
        """Count one answer."""
        dialect = here.dialect or "none"
        self._answers.labels(dialect, str(status)).inc()
        self._seconds.labels(dialect).observe(seconds)
        kind = str(status)[0]
        if kind in self._classes:
            self._classes[kind].labels("Host", platform.node()).inc()
        if not here.timings:
            return
        self._images.labels(here.model, dialect).inc(len(here.timings))
        self._cache.labels(here.cache).inc()
        for stage in _STAGES:
            spent = sum(getattr(t, f"{stage}_s") for t in here.timings)
            self._stages.labels(stage).inc(max(0.0, spent))
        name, _, version = here.model.partition("@")
        labels = (name, version or "default", platform.node())
        self._ts_requests.labels(*labels).inc()
        self._ts_latency.labels(*labels).inc(seconds * 1e6)
        self._ts_queue.labels(*labels).inc(max(t.queue_s for t in here.timings) * 1e6)

    def expose(self, *, running: int, jobs: Mapping[str, int], engine: Mapping[str, Any]) -> bytes:
        """Return everything in the Prometheus text format."""
        self._running.set(running)
        for status, count in jobs.items():
            self._jobs.labels(status).set(count)
        lines = [generate_latest(self._registry).decode().rstrip("\n")]
        for name, value in sorted(engine.items()):
            if _NAME.match(name) and isinstance(value, int | float):
                lines.append(f"{name} {float(value)!r}")
        return ("\n".join(lines) + "\n").encode()
