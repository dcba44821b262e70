"""Profile: a table of stages and a trace that Chrome or Perfetto can show.

A profile listens to spans (:mod:`mezzotint.observe.spans`). With ``operators``
it also runs torch's profiler and adds its operators to the same trace. This is
the only file of this room that may load torch, and only for that.
"""

import bisect
import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

from mezzotint.files import write_atomically
from mezzotint.observe.processes import resident_bytes
from mezzotint.observe.spans import SpanRecord, recording

__all__ = ["Profile", "StageRow"]


class StageRow(NamedTuple):
    """One line of the table.

    ``share`` is the part of the wall time, 0 to 1 (more with threads). ``peak_bytes`` is
    the most memory of the process, and of CUDA where torch uses it, seen while a span of
    this name was open; it is looked at every few milliseconds and at each span's end, so
    a shorter peak is missed.
    """

    name: str
    calls: int
    total_s: float
    mean_s: float
    longest_s: float
    share: float
    peak_bytes: int = 0
    peak_cuda_bytes: int = 0


_LOOK_S = 0.005


class _Memory(NamedTuple):
    """Memory at one moment of ``time.perf_counter``."""

    at_s: float
    resident_bytes: int
    cuda_bytes: int


def _look() -> _Memory:
    """Return the memory that is in use; CUDA's only where torch has begun to use it."""
    device = getattr(sys.modules.get("torch"), "cuda", None)  # torch may be half imported
    is_in_use = getattr(device, "is_initialized", None)
    cuda = int(device.memory_allocated()) if device and is_in_use and is_in_use() else 0
    return _Memory(time.perf_counter(), resident_bytes(), cuda)


class Profile:
    """Collects spans from every thread.

    Args:
        operators: Whether torch's own operators are recorded too. Makes the run
            itself slower and the trace much larger.

    Example:
        >>> from mezzotint.observe.spans import span
        >>> profile = Profile()
        >>> with profile.running(), span("decode", images=1):
        ...     pass
        >>> [row.name for row in profile.table()]
        ['decode']
    """

    def __init__(self, *, operators: bool = False) -> None:
        self._records: list[SpanRecord] = []
        self._operators = operators
        self._torch_events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._memory: list[_Memory] = []

    @contextlib.contextmanager
    def running(self) -> Generator["Profile"]:
        """Record everything that ends meanwhile."""
        with contextlib.ExitStack() as stack:
            if self._operators:
                stack.enter_context(self._recording_operators())
            stack.enter_context(recording(self.add))
            stack.enter_context(self._watching_memory())
            yield self

    @contextlib.contextmanager
    def _watching_memory(self) -> Generator[None]:
        """Look at the memory every few milliseconds, from a thread."""
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(_LOOK_S):
                self._memory.append(_look())

        self._memory.append(_look())
        watcher = threading.Thread(target=watch, name="mezzotint-profile", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            self._memory.append(_look())

    def _peaks(self, records: list[SpanRecord]) -> tuple[int, int]:
        """Return the most memory that was seen while any of some spans was open."""
        seen = sorted(self._memory)
        moments = [m.at_s for m in seen]
        inside: list[_Memory] = []
        for record in records:
            first = bisect.bisect_left(moments, record.start_s)
            last = bisect.bisect_right(moments, record.start_s + record.duration_s)
            inside += seen[first:last] or seen[max(first - 1, 0) : first]
        return (
            max((m.resident_bytes for m in inside), default=0),
            max((m.cuda_bytes for m in inside), default=0),
        )

    def add(self, record: SpanRecord) -> None:
        """Take one finished span, with the memory at its end: the watcher may have been late."""
        end = record.start_s + record.duration_s
        with self._lock:
            self._records.append(record)
            self._memory.append(_look()._replace(at_s=end))

    def table(self) -> list[StageRow]:
        """Return one row per span name, the most expensive first."""
        with self._lock:
            records = list(self._records)
        if not records:
            return []
        begin = min(r.start_s for r in records)
        wall = max(r.start_s + r.duration_s for r in records) - begin
        rows: list[StageRow] = []
        for name in dict.fromkeys(r.name for r in records):
            own = [r for r in records if r.name == name]
            times = [r.duration_s for r in own]
            total = sum(times)
            share = total / wall if wall else 0.0
            mean, longest = total / len(times), max(times)
            rows.append(StageRow(name, len(own), total, mean, longest, share, *self._peaks(own)))
        return sorted(rows, key=lambda row: -row.total_s)

    def trace(self) -> dict[str, Any]:
        """Return the trace as Chrome's trace event format; times are microseconds."""
        with self._lock:
            records = list(self._records)
        begin = min((r.start_s for r in records), default=0.0)
        threads = {t: k for k, t in enumerate(dict.fromkeys(r.thread for r in records))}
        events: list[dict[str, Any]] = [
            {
                "name": r.name,
                "ph": "X",
                "ts": (r.start_s - begin) * 1e6,
                "dur": r.duration_s * 1e6,
                "pid": os.getpid(),
                "tid": threads[r.thread],
                "args": dict(r.attributes),
            }
            for r in records
        ]
        return {"displayTimeUnit": "ms", "traceEvents": [*events, *self._torch_events]}

    def write_trace(self, path: Path) -> Path:
        """Write :meth:`trace` as JSON by atomic rename.

        Raises:
            OSError: If the folder is missing, not writable, or the disk is full.
        """
        return write_atomically(path, json.dumps(self.trace(), default=str).encode())

    @contextlib.contextmanager
    def _recording_operators(self) -> Generator[None]:
        """Run torch's profiler and keep its events."""
        import tempfile

        from torch import profiler

        with profiler.profile(acc_events=True) as torch_profile:
            yield
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            torch_profile.export_chrome_trace(str(path))
            self._torch_events = json.loads(path.read_text())["traceEvents"]
