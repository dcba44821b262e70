"""Spans: where the time goes, told to whoever listens.

A span goes to OpenTelemetry (which does nothing unless the embedding program
installs its SDK) and to recorders such as :class:`mezzotint.observe.profile.Profile`.
With neither, a span costs about a microsecond.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

from opentelemetry import propagate, trace

__all__ = ["SpanRecord", "carried", "recording", "remote_parent", "span"]

_TRACER = trace.get_tracer("mezzotint")


class SpanRecord(NamedTuple):
    """One finished span; times are seconds of ``time.perf_counter``."""

    name: str
    start_s: float
    duration_s: float
    thread: int
    attributes: Mapping[str, Any]


Recorder = Callable[[SpanRecord], None]
_recorders: tuple[Recorder, ...] = ()  # replaced whole, never edited: readers need no lock
_change = threading.Lock()


def span(name: str, **attributes: Any) -> AbstractContextManager[None]:
    """Time what happens inside under ``name``, e.g. ``span("decode", images=4)``.

    Args:
        name: One of the stages ``queue, encode, denoise, decode, gate, write``, or
            a dotted name below one of them.
        attributes: Numbers and short texts; never a prompt.
    """
    return _Span(name, attributes) if _recorders or _is_traced() else _NOBODY


def _is_traced() -> bool:
    """Whether the embedding program has installed OpenTelemetry's SDK, or one of its kind."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


_NOBODY = contextlib.nullcontext()  # a span that nobody listens to


class _Span:
    """A span that is told to OpenTelemetry and to recorders."""

    __slots__ = ("_attributes", "_name", "_start", "_told")

    def __init__(self, name: str, attributes: Mapping[str, Any]) -> None:
        self._name = name
        self._attributes = attributes

    def __enter__(self) -> None:
        self._start = time.perf_counter()
        self._told = _TRACER.start_as_current_span(
            f"mezzotint.{self._name}", attributes=self._attributes
        )
        self._told.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        end = time.perf_counter()
        thread = threading.get_ident()
        record = SpanRecord(self._name, self._start, end - self._start, thread, self._attributes)
        try:
            for recorder in _recorders:
                recorder(record)
        finally:
            self._told.__exit__(kind, error, trace_back)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Generator[None]:
    """Give every span that ends meanwhile, in any thread, to ``recorder``."""
    global _recorders  # noqa: PLW0603 - the list of listeners is the one thing shared here
    with _change:
        _recorders = (*_recorders, recorder)
    try:
        yield
    finally:
        with _change:
            _recorders = tuple(r for r in _recorders if r is not recorder)


def carried() -> dict[str, str]:
    """Return the headers that take the current trace to another process; {} without one."""
    headers: dict[str, str] = {}
    if _is_traced():
        propagate.inject(headers)
    return headers


@contextlib.contextmanager
def remote_parent(headers: Mapping[str, str]) -> Generator[None]:
    """Continue the trace that a client's ``traceparent`` header names."""
    if not any(name in headers for name in propagate.get_global_textmap().fields):
        yield
        return
    from opentelemetry import context

    token = context.attach(propagate.extract(dict(headers)))
    try:
        yield
    finally:
        context.detach(token)
