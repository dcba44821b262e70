"""Progress: which call the device thread is in, since when, and how long such calls take.

The device thread writes, others read: a call that takes many times what such calls took
before has hung. Only calls of a shape that was timed can be told so; encoding, which may
load a model, and whatever stands outside :meth:`CallProgress.during` have no measure.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass
from typing import Any

__all__ = ["CallProgress"]

_MOST_SHAPES = 4096


@dataclass(frozen=True, slots=True)
class _Call:
    """A call under way.

    Args:
        kind: ``step`` or ``decode``.
        began: When, on the clock.
        expected_s: Seconds that such calls take, None where nothing is known.
        is_first: Whether it is the first of its shape here, which may certify or compile.
    """

    kind: str
    began: float
    expected_s: float | None
    is_first: bool


class CallProgress:
    """What the device thread is doing; written by that thread, read by any.

    Args:
        clock: Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._longest: dict[Hashable, float | None] = {}
        self._call: _Call | None = None

    @contextlib.contextmanager
    def during(self, kind: str, shape: Hashable, expected_s: float | None) -> Generator[None]:
        """Mark a call.

        Args:
            kind: ``step`` or ``decode``.
            shape: What calls must share to take equally long.
            expected_s: Seconds it is expected to take, if any were ever measured.
        """
        is_first = (kind, shape) not in self._longest
        longest = self._longest.get((kind, shape))
        known = [seconds for seconds in (longest, expected_s) if seconds is not None]
        began = self._clock()
        self._call = _Call(kind, began, max(known, default=None), is_first)
        try:
            yield
            if len(self._longest) >= _MOST_SHAPES:
                self._longest.clear()
            # The first pays for what only a first call does: its seconds say nothing.
            taken = None if is_first else max(longest or 0.0, self._clock() - began)
            self._longest[kind, shape] = taken
        finally:
            self._call = None

    def describe(self) -> dict[str, Any] | None:
        """Return the call under way as plain data, None if there is none.

        ``kind``, ``seconds`` since it began, ``expected_s`` (None where nothing is known)
        and ``is_first`` (it may take as long as compiling does).
        """
        call = self._call
        if call is None:
            return None
        return {
            "kind": call.kind,
            "seconds": max(self._clock() - call.began, 0.0),
            "expected_s": call.expected_s,
            "is_first": call.is_first,
        }
