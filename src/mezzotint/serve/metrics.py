"""Metrics of the server, for the metrics listener.

Names with ``ts_`` are those TorchServe's dashboards read; the others are ours.
The engine's own numbers live in its process and come through the service's
``health``, as Prometheus text or as plain numbers.
"""

import platform
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client import generate_latest as render_registry

from mezzotint.observe import metrics
from mezzotint.observe.metrics import Metric, Metrics
from mezzotint.observe.processes import tree_bytes
from mezzotint.serve.torchserve_metrics import TorchServeMetrics
from mezzotint.serve.wire import Visit

__all__ = ["CATALOGUE", "ServerMetrics", "merge"]

_SECONDS = (0.005, 0.02, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300)
_NAME = re.compile(r"^[a-zA-Z_:][a-zA-Z0-9_:]*(\{[^{}\n]*\})?$")
_MODEL = ("model_name", "model_version", "hostname")
_HOST = ("Level", "Hostname")

CATALOGUE: dict[str, Metric] = {
    "mezzotint_http_seconds": Metric(
        "histogram", "Seconds from request to answer.", ("door",), _SECONDS
    ),
    "mezzotint_http_running": Metric("gauge", "Generations that somebody waits for."),
    "mezzotint_jobs": Metric("gauge", "Durable jobs by status.", ("status",)),
    "mezzotint_resident_bytes": Metric(
        "gauge", "Memory of the server and of the processes that it started."
    ),
    "ts_inference_requests_total": Metric("counter", "Inferences.", _MODEL),
    "ts_inference_latency_microseconds": Metric("counter", "Seconds * 1e6 of inferences.", _MODEL),
    "ts_queue_latency_microseconds": Metric("counter", "Seconds * 1e6 in the queue.", _MODEL),
    "Requests2XX": Metric("counter", "Answers with 2xx.", _HOST),
    "Requests4XX": Metric("counter", "Answers with 4xx.", _HOST),
    "Requests5XX": Metric("counter", "Answers with 5xx.", _HOST),
}


class ServerMetrics:
    """Counts what goes through the doors."""

    def __init__(self) -> None:
        self._metrics = Metrics(CATALOGUE)
        self._torchserve = TorchServeMetrics()
        self._process = CollectorRegistry()
        ProcessCollector(registry=self._process)
        PlatformCollector(registry=self._process)
        self._host = platform.node()
        for kind in "245":
            self._metrics.count(f"Requests{kind}XX", 0, Level="Host", Hostname=self._host)

    def answered(self, here: Visit, status: int, seconds: float) -> None:
        """Count one answer."""
        door = here.dialect or "none"
        metrics.count("mezzotint_requests_total", door=door, status=str(status))
        if here.problem == "unauthorized":
            metrics.count("mezzotint_auth_failures_total", door=door)
        self._metrics.measure("mezzotint_http_seconds", seconds, door=door)
        self._torchserve.answered(here, status, seconds)
        if str(status)[0] in "245":
            name = f"Requests{str(status)[0]}XX"
            self._metrics.count(name, Level="Host", Hostname=self._host)
        if not (here.timings or here.ran_code):
            return
        model, _, version = here.model.partition("@")
        labels = {
            "model_name": model,
            "model_version": version or "default",
            "hostname": self._host,
        }
        self._metrics.count("ts_inference_requests_total", 1, **labels)
        self._metrics.count("ts_inference_latency_microseconds", seconds * 1e6, **labels)
        if here.ran_code:  # handler code tells no stages
            return
        queue_s = max(t.queue_s for t in here.timings)
        self._metrics.count("ts_queue_latency_microseconds", max(0.0, queue_s) * 1e6, **labels)

    def expose(self, *, running: int, jobs: Mapping[str, int], health: Mapping[str, Any]) -> bytes:
        """Return everything in the Prometheus text format.

        Args:
            running: Generations that somebody waits for.
            jobs: Durable jobs by status.
            health: The service's health; ``metrics_text`` and ``metrics`` are used.
        """
        self._metrics.set_to("mezzotint_http_running", running)
        if resident := tree_bytes():
            self._metrics.set_to("mezzotint_resident_bytes", resident)
        for status, count in jobs.items():
            self._metrics.set_to("mezzotint_jobs", count, status=status)
        numbers: Mapping[str, Any] = health.get("metrics") or {}
        lines = [
            f"{name} {float(value)!r}"
            for name, value in sorted(numbers.items())
            if _NAME.match(name) and isinstance(value, int | float)
        ]
        texts = [
            self._metrics.render().decode(),
            self._torchserve.expose(),
            metrics.render().decode(),
            str(health.get("metrics_text") or ""),
            render_registry(self._process).decode(),
            "\n".join([*lines, ""]) if lines else "",
        ]
        return merge(texts).encode()


def merge(texts: list[str]) -> str:
    """Join texts of several processes; a family that two of them have is told once.

    The samples of one family stay together, as the format demands.
    """
    families: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    for text in texts:
        for family, head, samples in _families(text):
            heads.setdefault(family, head)
            families.setdefault(family, []).extend(
                s for s in samples if s not in families.get(family, [])
            )
    lines = [line for name, samples in families.items() for line in (*heads[name], *samples)]
    return "\n".join(lines) + "\n"


def _families(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield name, head lines and samples of each metric family."""
    name, head, samples = "", list[str](), list[str]()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            if head or samples:
                yield name, head, samples
            name, head, samples = line.split(" ", 3)[2], [line], []
        elif line.startswith("#"):
            head.append(line)
        elif line:
            samples.append(line)
    if head or samples:
        yield name, head, samples
