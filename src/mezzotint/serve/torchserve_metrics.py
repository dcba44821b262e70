"""Metrics by the names and labels that TorchServe has for them, written as it writes them.

The Prometheus client ends the name of every counter in ``_total``; TorchServe does not,
so its dashboards would find none. These stand beside ours.
"""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from mezzotint.serve.wire import Visit

__all__ = ["TorchServeMetrics", "machine_memory"]

_COUNTERS: Mapping[str, str] = {
    "Requests2XX": "Answers with 2xx.",
    "Requests4XX": "Answers with 4xx.",
    "Requests5XX": "Answers with 5xx.",
    "ts_inference_latency_microseconds": "Microseconds from request to answer, summed.",
    "ts_queue_latency_microseconds": "Microseconds in the queue, summed.",
}
_GAUGES: Mapping[str, str] = {
    "QueueTime": "Milliseconds in the queue, of the last inference.",
    "WorkerThreadTime": "Milliseconds outside the handler, of the last inference.",
    "HandlerTime": "Milliseconds of the work, of the last inference.",
    "PredictionTime": "Milliseconds of the work, of the last inference.",
    "CPUUtilization": "Percent of the processors that was busy since the last look.",
    "MemoryAvailable": "Megabytes of memory that are free to use.",
    "MemoryUsed": "Megabytes of memory in use.",
    "MemoryUtilization": "Percent of memory in use.",
    "DiskAvailable": "Gigabytes free on the disk of the current folder.",
    "DiskUsage": "Gigabytes in use on the disk of the current folder.",
    "DiskUtilization": "Percent in use of the disk of the current folder.",
}
_MEGABYTE = 1024.0**2
_GIGABYTE = 1024.0**3


class TorchServeMetrics:
    """Counts what TorchServe counts."""

    def __init__(self) -> None:
        self._host = platform.node()
        self._level = f'Level="Host",Hostname="{self._host}"'
        self._values: dict[tuple[str, str], float] = {
            (f"Requests{kind}XX", self._level): 0.0 for kind in "245"
        }
        self._processors = _processor_times()

    def answered(self, here: Visit, status: int, seconds: float) -> None:
        """Count one answer.

        Args:
            here: The visit: its model, its stages.
            status: HTTP status.
            seconds: From the request to the answer.
        """
        if str(status)[0] in "245":
            self._add(f"Requests{str(status)[0]}XX", self._level, 1.0)
        if not (here.timings or here.ran_code):
            return
        model, _, version = here.model.partition("@")
        labels = (
            f'model_name="{_text(model)}",model_version="{_text(version or "default")}",'
            f'hostname="{self._host}"'
        )
        queue_s = max([0.0, *(t.queue_s for t in here.timings)])
        self._add("ts_inference_latency_microseconds", labels, seconds * 1e6)
        if here.timings:  # handler code tells no stages
            self._add("ts_queue_latency_microseconds", labels, queue_s * 1e6)
        of_model = f'ModelName="{_text(model)}",Level="Model",Hostname="{self._host}"'
        work_ms = max(0.0, seconds - queue_s) * 1e3
        self._values["QueueTime", self._level] = queue_s * 1e3
        stages_s = max(
            [0.0, *(t.encode_s + t.denoise_s + t.decode_s + t.gate_s for t in here.timings)]
        )
        spent_s = stages_s if here.timings else seconds
        self._values["WorkerThreadTime", self._level] = max(0.0, work_ms - spent_s * 1e3)
        self._values["HandlerTime", of_model] = self._values["PredictionTime", of_model] = work_ms

    def expose(self) -> str:
        """Return everything in the Prometheus text format."""
        self._values |= {(name, self._level): value for name, value in self._system()}
        lines: list[str] = []
        for kind, catalogue in (("counter", _COUNTERS), ("gauge", _GAUGES)):
            for name, text in catalogue.items():
                lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
                lines += [
                    f"{name}{{{labels}}} {value!r}"
                    for (known, labels), value in self._values.items()
                    if known == name
                ]
        return "\n".join([*lines, ""])

    def _add(self, name: str, labels: str, amount: float) -> None:
        self._values[name, labels] = self._values.get((name, labels), 0.0) + amount

    def _system(self) -> Iterator[tuple[str, float]]:
        """Yield name and value of what this machine tells of itself."""
        disk = shutil.disk_usage(Path.cwd())
        yield "DiskAvailable", disk.free / _GIGABYTE
        yield "DiskUsage", disk.used / _GIGABYTE
        yield "DiskUtilization", 100.0 * disk.used / max(1, disk.total)
        memory = machine_memory()
        if memory is not None:
            available, total = memory
            yield "MemoryAvailable", available / _MEGABYTE
            yield "MemoryUsed", (total - available) / _MEGABYTE
            yield "MemoryUtilization", 100.0 * (total - available) / max(1, total)
        before, self._processors = self._processors, _processor_times()
        busy, everything = (now - then for now, then in zip(self._processors, before, strict=True))
        if everything > 0:
            yield "CPUUtilization", min(100.0, max(0.0, 100.0 * busy / everything))
        elif self._processors[1]:
            yield "CPUUtilization", 0.0


def _text(value: str) -> str:
    """Return a label's value with what would end it escaped."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _processor_times() -> tuple[float, float]:
    """Return ticks that processors were busy, and all; zeros where the system does not tell."""
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:
        return 0.0, 0.0
    ticks = [float(word) for word in words[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def machine_memory() -> tuple[float, float] | None:
    """Return bytes of memory that are free to use, and all; None where it is not told."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines}
        return found["MemAvailable"], found["MemTotal"]
    except (OSError, KeyError, IndexError, ValueError):
        try:
            page = os.sysconf("SC_PAGE_SIZE")
            return (
                float(page * os.sysconf("SC_AVPHYS_PAGES")),
                float(page * os.sysconf("SC_PHYS_PAGES")),
            )
        except (OSError, ValueError):
            return None
