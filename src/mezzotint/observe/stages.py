"""Stages: what a process does before it can draw, told while it does it.

A large model takes minutes from its first request to its first step: weights are read,
networks converted, compared and compiled, calls timed. Who does such a thing says so with
:func:`stage`; a progress bar listens, the log has a line for each, and a server that is not
ready yet says which one it is at.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Literal

from mezzotint.observe import log

__all__ = ["Doing", "Stage", "current", "listening", "stage"]

Doing = Literal["starting", "reading", "converting", "comparing", "compiling", "timing", "learning"]

_MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Something that takes a while.

    Args:
        doing: What is done.
        what: To which network or model.
        num_bytes: Bytes of its weights; 0 where they say nothing about how long it takes.
        seconds: What it took; None while it goes on.
    """

    doing: Doing
    what: str
    num_bytes: int = 0
    seconds: float | None = None

    def describe(self) -> str:
        """Return it as a few words: ``"compiling denoiser, 3438 MB"``."""
        size = f", {self.num_bytes / _MEGABYTE:.0f} MB" if self.num_bytes >= _MEGABYTE else ""
        return f"{self.doing} {self.what}{size}"


Listener = Callable[[Stage], None]

_lock = threading.Lock()
_listeners: list[Listener] = []
_open: list[Stage] = []


@contextlib.contextmanager
def stage(doing: Doing, what: str, num_bytes: int = 0) -> Generator[None]:
    """Say that the block does something that takes a while.

    Listeners hear of it when it begins, and again with its seconds when it is over. One
    stage may lie inside another.
    """
    begun = Stage(doing=doing, what=what, num_bytes=num_bytes)
    began = time.monotonic()
    with _lock:
        _open.append(begun)
    log.info(f"network.{doing}", what=what, bytes=num_bytes)
    _tell(begun)
    try:
        yield
    finally:
        with _lock:
            _open.remove(begun)
        _tell(replace(begun, seconds=time.monotonic() - began))


def current() -> Stage | None:
    """Return what this process does at the moment: the stage that began last; or None."""
    with _lock:
        return _open[-1] if _open else None


@contextlib.contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Hear of every stage of this process inside the block, from whatever thread is at it."""
    with _lock:
        _listeners.append(listener)
    try:
        yield
    finally:
        with _lock:
            _listeners.remove(listener)


def _tell(what: Stage) -> None:
    with _lock:
        listeners = tuple(_listeners)
    for listener in listeners:
        listener(what)
