"""Processes: the memory of one, and of all that it started."""

import contextlib
import os
from pathlib import Path

__all__ = ["resident_bytes", "tree_bytes"]

_PROC = Path("/proc")


def resident_bytes(pid: int | None = None) -> int:
    """Return the memory that a process has in RAM, in bytes; 0 where the system does not say.

    Args:
        pid: Which process; this one if not given.
    """
    name = "self" if pid is None else str(pid)
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int((_PROC / name / "statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def tree_bytes() -> int:
    """Return the memory of this process and of all that it started, in bytes.

    What several of them share counts for each. 0 where the system does not say.
    """
    total, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += resident_bytes(pid)
        for thread in (_PROC / str(pid) / "task").glob("*/children"):
            with contextlib.suppress(OSError):  # the thread may be gone
                waiting += map(int, thread.read_text(encoding="ascii").split())
    return total
