"""Spans: where the time goes, told to whoever listens.

A span goes to OpenTelemetry (which does nothing unless the embedding program
installs its SDK) and to recorders such as :class:`mezzotint.observe.profile.Profile`.
With neither, a span costs about a microsecond.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from opentelemetry import propagate, trace

__all__ = ["SpanRecord", "recording", "remote_parent", "span"]

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


@contextlib.contextmanager
def span(name: str, **attributes: Any) -> Generator[None]:
    """Time what happens inside under ``name``, e.g. ``span("decode", images=4)``.

    Args:
        name: One of the stages ``queue, encode, denoise, decode, gate, write``, or
            a dotted name below one of them.
        attributes: Numbers and short texts; never a prompt.
    """
    start = time.perf_counter()
    with _TRACER.start_as_current_span(f"mezzotint.{name}", attributes=attributes):
        try:
            yield
        finally:
            if _recorders:
                end = time.perf_counter()
                record = SpanRecord(name, start, end - start, threading.get_ident(), attributes)
                for recorder in _recorders:
                    recorder(record)


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


@contextlib.contextmanager
def remote_parent(headers: Mapping[str, str]) -> Generator[None]:
    """Continue the trace that a client's ``traceparent`` header names."""
    from opentelemetry import context

    token = context.attach(propagate.extract(dict(headers)))
    try:
        yield
    finally:
        context.detach(token)
