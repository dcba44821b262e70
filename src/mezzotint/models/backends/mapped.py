"""Mapped constants: pages of a file that were read are given back while a network packs them.

OpenVINO maps the constants of a network from their file and packs a copy of most of them
for its kernels, at the first call of each shape. A page that was read counts as memory of
this process from then on, though nobody reads it again, so that every network would count
twice. Pages given back stay in the system's cache of files: reading one again costs a page
fault, and no reading from disk as long as there is room.

Pages are only given back of memory that somebody holds. An address by itself may be another's
by the time the system hears of it: what was mapped there is gone, new memory lies in its place,
and giving that back would fill it with zeros, without a word.
"""

import array
import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

from mezzotint.observe import garbage

__all__ = [
    "give_back_pages",
    "give_back_untouched",
    "giving_back",
    "largest_constant",
    "return_memory",
    "trim",
]

_EVERY_S = 0.1
_LEAST_BYTES = 64 << 20  # of a file that is worth a thread
_DONTNEED = 4  # madvise of Linux: for a file that is mapped, its pages can go
_PRESENT, _SWAPPED, _OF_A_FILE = 1 << 63, 1 << 62, 1 << 61  # of an entry of Linux' pagemap


def give_back_pages(address: int, num_bytes: int) -> None:
    """Take the whole pages of a part of a mapped file out of this process's memory.

    Args:
        address: Of its first byte, in a mapping of a file that nobody writes to; whoever calls
            holds it.
        num_bytes: Bytes of it.
    """
    start, end = _pages(address, num_bytes)
    if sys.platform == "linux" and start < end:
        _library().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def give_back_untouched(address: int, num_bytes: int) -> bool:
    """Take whole pages out of memory if all of them are as they lie in a file.

    What was written to a private mapping would be lost, and so would other memory: both are
    left alone.

    Args:
        address: Of the first byte; whoever calls holds it, and nobody writes to it meanwhile.
        num_bytes: Bytes.

    Returns:
        Whether they were given back; never where the system is not Linux.
    """
    start, end = _pages(address, num_bytes)
    if sys.platform != "linux" or start >= end:
        return False
    entries = array.array("Q")
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as file:
            file.seek(start // mmap.PAGESIZE * entries.itemsize)
            wanted = (end - start) // mmap.PAGESIZE * entries.itemsize
            while wanted > 0 and (read := file.read(wanted)):
                entries.frombytes(read)
                wanted -= len(read)
    except (OSError, ValueError):  # not to be read here, or only in part
        return False
    if wanted or any(e & _SWAPPED or (e & _PRESENT and not e & _OF_A_FILE) for e in entries):
        return False
    give_back_pages(address, num_bytes)
    return True


def _pages(address: int, num_bytes: int) -> tuple[int, int]:
    """Return the first and last address of the whole pages in a part of memory."""
    page = mmap.PAGESIZE
    return -(-address // page) * page, (address + num_bytes) // page * page


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


def largest_constant(model: Any) -> Any:
    """Return the numbers of the largest constant of an OpenVINO model, None if it has none.

    They are no copy. As long as somebody holds them, so are all constants of the file that
    they are mapped from.
    """
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"]
    return max(found, key=lambda node: node.get_byte_size()).data if found else None


@contextlib.contextmanager
def giving_back(held: Any) -> Generator[None]:
    """Give back a mapped file's pages again and again inside the block, and once after it.

    Args:
        held: An array whose numbers are mapped from the file; they stay mapped as long as the
            block lasts. None, and what lies in memory of its own, does nothing, and neither
            does a small file.
    """
    found = None if held is None else _mapping_of(held.ctypes.data)
    if found is None or found[1] - found[0] < _LEAST_BYTES:
        yield
        return
    start, end = found
    is_over = threading.Event()

    def repeat() -> None:
        while not is_over.wait(_EVERY_S):
            give_back_pages(start, end - start)

    thread = threading.Thread(target=repeat, name="mezzotint-mapped", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        give_back_pages(start, end - start)


def _mapping_of(address: int) -> tuple[int, int] | None:
    """Return first and last address of the mapping of a file, that nobody can write to, around.

    None where there is none, and where the system is not Linux.
    """
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            start, _, end = fields[0].partition("-")
            if int(start, 16) <= address < int(end, 16):
                is_ours = "w" not in fields[1] and fields[4] != "0"
                return (int(start, 16), int(end, 16)) if is_ours else None
    return None
