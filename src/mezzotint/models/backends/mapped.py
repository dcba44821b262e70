"""Mapped constants: pages of a file that were read are given back while a network packs them.

OpenVINO maps the constants of a network from their file and packs a copy of most of them
for its kernels, at the first call of each shape. A page that was read counts as memory of
this process from then on, though nobody reads it again, so that every network would count
twice. Pages given back stay in the system's cache of files: reading one again costs a page
fault, and no reading from disk as long as there is room.
"""

import contextlib
import ctypes
import itertools
import mmap
import sys
import threading
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path

from mezzotint.observe import garbage

__all__ = ["give_back", "give_back_pages", "giving_back", "return_memory", "trim"]

_EVERY_S = 0.1
_LEAST_BYTES = 64 << 20  # of a file that is worth a thread
_DONTNEED = 4  # madvise of Linux: for a file that is mapped, its pages can go


def give_back(path: Path, *, is_untouched: bool = False) -> int:
    """Take the pages of a mapped file out of this process's memory; what they hold stays.

    Mappings that somebody could write to are left alone: what is written to a private one
    would be lost.

    Args:
        path: The file.
        is_untouched: Whether nobody writes to a private mapping of it though he could, as where
            torch reads weights: those that nothing was written to so far are touched too.

    Returns:
        Bytes of the mappings found; 0 where the system is not Linux.
    """
    if sys.platform != "linux":
        return 0
    advise = _library().madvise
    total = 0
    found = itertools.chain(_mappings(path), _untouched(path) if is_untouched else ())
    for start, end in found:
        if advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED) == 0:
            total += end - start
    return total


def give_back_pages(address: int, num_bytes: int) -> None:
    """Take the whole pages of a part of a mapped file out of this process's memory.

    Args:
        address: Of its first byte, in a mapping of a file that nobody writes to.
        num_bytes: Bytes of it.
    """
    if sys.platform != "linux":
        return
    page = mmap.PAGESIZE
    start, end = -(-address // page) * page, (address + num_bytes) // page * page
    if start < end:
        _library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def return_memory() -> None:
    """Collect garbage, and give all that is free back to the system."""
    garbage.collect()
    trim()


def trim() -> None:
    """Give freed memory back to the system, which the allocator of Linux keeps otherwise."""
    if sys.platform == "linux":
        trim = getattr(_library(), "malloc_trim", None)
        if trim is not None:
            trim(0)


@contextlib.contextmanager
def giving_back(path: Path | None, *, is_untouched: bool = False) -> Generator[None]:
    """Give back a file's pages again and again inside the block, and once after it.

    Args:
        path: The file; None does nothing, and neither does a small one.
        is_untouched: See :func:`give_back`.
    """
    if path is None or sys.platform != "linux" or not _is_large(path):
        yield
        return
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(_EVERY_S):
            give_back(path, is_untouched=is_untouched)

    thread = threading.Thread(target=repeat, name="mezzotint-mapped", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        give_back(path, is_untouched=is_untouched)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size >= _LEAST_BYTES
    except OSError:  # deleted meanwhile; whoever mapped it still has it
        return False


def _mappings(path: Path) -> Iterator[tuple[int, int]]:
    """Yield first and last address of each mapping of a file that nobody can write to."""
    with contextlib.suppress(OSError):
        name = str(path.resolve())
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name and "w" not in fields[1]:
                start, _, end = fields[0].partition("-")
                yield int(start, 16), int(end, 16)


def _untouched(path: Path) -> Iterator[tuple[int, int]]:
    """Yield first and last address of each private mapping that nothing was written to."""
    with contextlib.suppress(OSError):
        name, place = str(path.resolve()), ""
        for line in Path("/proc/self/smaps").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "Anonymous:" and place and value.split()[0] == "0":
                start, _, end = place.partition("-")
                yield int(start, 16), int(end, 16)
            elif not key.endswith(":"):
                fields = line.split(maxsplit=5)
                is_ours = len(fields) == 6 and fields[5] == name and fields[1] == "rw-p"
                place = fields[0] if is_ours else ""
