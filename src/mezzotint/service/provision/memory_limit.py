"""Memory limit: how much memory this process may have.

A container or a service has a limit of its own (its control group's), and the kernel
kills whoever goes beyond it however much the machine has.

Source: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst;
proc(5) and cgroups(7) on /proc/self/cgroup.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["group_limit", "memory_limit"]


def memory_limit() -> int:
    """Return bytes: the machine's memory, or this control group's limit if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = group_limit()
    return machine if limit is None else min(machine, limit)


def group_limit(
    groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the memory limit in bytes of this process's control groups, None without one.

    A group's limit holds for the groups below it, so the smallest on the way up counts.
    Version 1 has no word for "no limit" and writes a number near 2 ** 63.

    Args:
        groups: Which groups the process is in.
        root: Where they are mounted. In a container that is the container's own group,
            whatever path the first file tells; so the root is always looked at.
    """
    limits: list[int] = []
    for file in _limit_files(groups, root):
        try:
            text = file.read_text().strip()
        except (OSError, UnicodeDecodeError):  # not this version, not this container's path
            continue
        if text.isdecimal():  # version 2 writes "max" for none
            limits.append(int(text))
    return min(limits, default=None)


def _limit_files(groups: Path, root: Path) -> Iterator[Path]:
    """Yield the files that may hold a limit; not all of them exist."""
    try:
        lines = groups.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    yield root / "memory.max"
    yield root / "memory" / "memory.limit_in_bytes"
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        inner = PurePosixPath(path.lstrip("/"))
        for group in () if ".." in inner.parts else (inner, *inner.parents):
            if not controllers:
                yield root / group / "memory.max"
            elif "memory" in controllers.split(","):
                yield root / "memory" / group / "memory.limit_in_bytes"
