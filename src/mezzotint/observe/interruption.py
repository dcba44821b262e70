"""Interruption: work that nobody waits for is left at once when somebody comes.

The thread that does such work says so with :func:`interruptible`. Whatever takes long inside
it asks :func:`check` before it begins, and :func:`interruption` while it waits; work that is
left raises :class:`Interrupted` and has changed nothing.
"""

import contextlib
import threading
from collections.abc import Generator

__all__ = ["Interrupted", "check", "interruptible", "interruption"]


class Interrupted(Exception):
    """Raised by work that was left because somebody waits for something else."""


_local = threading.local()


@contextlib.contextmanager
def interruptible(event: threading.Event) -> Generator[None]:
    """Let what this thread does inside the block be left as soon as an event is set."""
    before = interruption()
    _local.event = event
    try:
        yield
    finally:
        _local.event = before


def interruption() -> threading.Event | None:
    """Return what interrupts this thread's work; None where nothing does."""
    return getattr(_local, "event", None)


def check() -> None:
    """Leave the work of this thread if somebody has come.

    Raises:
        Interrupted: If so.
    """
    event = interruption()
    if event is not None and event.is_set():
        raise Interrupted
