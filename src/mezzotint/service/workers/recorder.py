"""Recorder: what a worker is at, written where its death leaves it readable.

Who is being planned or drawn when a worker dies may be why it died, so its supervisor has to
know. Telling it of every beginning would wake two processes for each picture, for a moment
that hardly ever comes. The worker writes its beginnings into memory that both have, as the
flight recorder of an aeroplane does, and the supervisor looks there when there is a reason to.

The memory is a row of 64-bit numbers: whether anybody writes here at all, the call that is
being planned in the event loop just now, then one place for each call that is being planned
elsewhere or drawn. A place holds twice the number of the call, one more where it is drawn.
"""

import mmap
import os
import tempfile
from dataclasses import dataclass

__all__ = ["Recorded", "Recorder", "make_memory", "read_memory"]

_PLACES = 1 << 16
_BYTES = 8 * (_PLACES + 2)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a worker was at when it was last heard of.

    Args:
        planning: Calls that were being planned.
        drawn: Calls of which an image had begun.
    """

    planning: frozenset[int]
    drawn: frozenset[int]


class Recorder:
    """The worker's side.

    Args:
        memory: File descriptor of what :func:`make_memory` returned.

    Its methods may be called in any thread; none waits. Beyond as many beginnings at once as
    there are places (65,536) the rest is not written down.
    """

    def __init__(self, memory: int) -> None:
        self._numbers = memoryview(mmap.mmap(memory, _BYTES)).cast("Q")
        self._numbers[0] = 1
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._fresh = iter(range(2, _PLACES + 2))

    def plan_here(self, call: int) -> None:
        """Write down which call the event loop plans just now; 0 is none."""
        self._numbers[1] = 2 * call

    def plan(self, call: int) -> None:
        """Write down that a call is being planned."""
        self._enter(call, 2 * call)

    def draw(self, call: int) -> None:
        """Write down that an image of a call begins."""
        self._enter(call, 2 * call + 1)

    def end(self, call: int) -> None:
        """Wipe what was written of a call."""
        place = self._places.pop(call, None)
        if place is not None:
            self._numbers[place] = 0
            self._free.append(place)

    def _enter(self, call: int, number: int) -> None:
        place = self._places.get(call)
        if place is None:
            try:
                place = self._free.pop()
            except IndexError:
                place = next(self._fresh, None)
            if place is None:
                return
            self._places[call] = place
        self._numbers[place] = number


def make_memory() -> int:
    """Return a file descriptor of empty memory, for a worker to inherit."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("mezzotint-recorder", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.ftruncate(memory, _BYTES)
    return memory


def read_memory(memory: int) -> Recorded | None:
    """Return what a worker wrote last; None where it never wrote here."""
    with mmap.mmap(memory, _BYTES, prot=mmap.PROT_READ) as pages, memoryview(pages) as view:
        numbers = view.cast("Q")
        try:
            if not numbers[0]:
                return None
            held = [number for number in numbers[1:] if number]
        finally:
            numbers.release()
    return Recorded(
        planning=frozenset(number // 2 for number in held if not number % 2),
        drawn=frozenset(number // 2 for number in held if number % 2),
    )
