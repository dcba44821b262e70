"""Process groups: all that one handler's process started, wherever it went.

A child may give itself a session, and its parent may end: neither is a way out. The
handler's process takes in the orphans below it (``PR_SET_CHILD_SUBREAPER``), so that they
stay in the tree under it; whoever outlived it is known from an earlier look, or by the
mark that stands in the environment it was started with.
"""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

from mezzotint.observe.processes import resident_bytes

__all__ = ["ProcessGroup"]

_PROC = Path("/proc")
_ROUNDS = 50
_PAUSE_S = 0.01


class ProcessGroup:
    """The processes of one handler. Any thread may ask.

    Args:
        pid: The handler's own process, which leads a process group and runs.
        mark: Text that stands in its environment and in no other's.
    """

    def __init__(self, pid: int, mark: str) -> None:
        self._pid = pid
        self._mark = mark.encode()
        self._known: dict[int, str] = {}  # pid -> when it started
        self._lock = threading.Lock()
        about = _processes().get(pid)
        if about is not None:
            self._known[pid] = about[1]

    def takes_more_than(self, memory_bytes: int, children: int) -> bool:
        """Say whether the processes together take more memory, or are more, than they may.

        Memory that several of them share counts once. Systems without ``/proc`` say no.

        Args:
            memory_bytes: Resident bytes of all of them.
            children: Processes beside the handler's own.
        """
        with self._lock:
            members = self._members()
            if len(members) > children + 1:
                return True
            resident = {pid: resident_bytes(pid) for pid in members}
            if sum(resident.values()) <= memory_bytes:  # shared memory counted once is not more
                return False
            return sum(_shared_once(pid, most) for pid, most in resident.items()) > memory_bytes

    def kill(self) -> None:
        """Kill every process of the group; the one that takes the orphans in goes last."""
        with self._lock:
            if self._pid in self._members():  # stopped, it starts no other and takes orphans in
                _send(self._pid, signal.SIGSTOP)
            for _ in range(_ROUNDS):
                others = (self._members() | self._marked()) - {self._pid}
                if not others:
                    break
                for number in (signal.SIGSTOP, signal.SIGKILL):  # none of them may start another
                    for pid in others:
                        _send(pid, number)
                time.sleep(_PAUSE_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)

    def _members(self) -> set[int]:
        """Return who lives of those seen before and of the trees below them."""
        about = _processes()
        tree = {pid for pid, at in self._known.items() if about.get(pid, (0, ""))[1] == at}
        grew = bool(tree)
        while grew:
            found = {pid for pid, (parent, _) in about.items() if parent in tree}
            grew = not found <= tree
            tree |= found
        self._known = {pid: about[pid][1] for pid in tree}
        return tree

    def _marked(self) -> set[int]:
        """Return who was started with the mark in its environment."""
        found: set[int] = set()
        for pid in _processes():
            with contextlib.suppress(OSError):
                if self._mark in (_PROC / str(pid) / "environ").read_bytes():
                    found.add(pid)
        return found


def _send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _processes() -> dict[int, tuple[int, str]]:
    """Return parent and start of every process that lives."""
    found: dict[int, tuple[int, str]] = {}
    names = os.listdir(_PROC) if _PROC.is_dir() else []
    for name in names:
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                fields = (_PROC / name / "stat").read_text().rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    found[int(name)] = (int(fields[1]), fields[19])
    return found


def _shared_once(pid: int, otherwise: int) -> int:
    """Return a process's memory in bytes, what it shares counted by its part."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return otherwise
