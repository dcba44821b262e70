"""Interruption: work that nobody waits for is left at once when somebody comes.

The thread that does such work says so with :func:`interruptible`. Whatever takes long inside
it asks :func:`check` before it begins, and :func:`interruption` while it waits; work that is
left raises :class:`Interrupted` and has changed nothing.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, Generic, TypeVar

__all__ = ["Interrupted", "Study", "check", "interruptible", "interruption"]

T = TypeVar("T")
_LOOKS_S = 0.05  # how often who studies looks whether somebody came


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


class Study(Generic[T]):
    """Work that goes on, piece by piece, while nobody waits.

    Each piece has a thread of its own: who studies is free at once when somebody comes, and the
    piece, which may be one that nothing can stop, ends beside them.

    Args:
        work: Does a piece at a time.
        then: Told what it returns.
    """

    def __init__(self, work: Generator[Any, None, T], then: Callable[[T], object]) -> None:
        self._work = work
        self._then = then
        self._piece: Future[bool] | None = None

    def __deepcopy__(self, memo: object) -> "Study[T]":
        return self

    def study(self) -> None:
        """Go on where it was left.

        Raises:
            Interrupted: If somebody came; it is called again then.
        """
        is_over = False
        while not is_over:
            check()
            piece = self._piece or self._begin()
            while not wait((piece,), _LOOKS_S).done:
                check()
            self._piece = None
            is_over = piece.result()

    def _begin(self) -> "Future[bool]":
        """Begin the next piece; it answers whether it was the last."""
        piece: Future[bool] = Future()
        self._piece = piece
        work = partial(self._advance, piece)
        threading.Thread(target=work, name="mezzotint-study").start()
        return piece

    def _advance(self, piece: "Future[bool]") -> None:
        """Do a piece; tell whether it was the last."""
        try:
            next(self._work)
        except StopIteration as end:
            self._then(end.value)
            piece.set_result(True)
        except Exception as error:  # whoever studies is told
            piece.set_exception(error)
        else:
            piece.set_result(False)
