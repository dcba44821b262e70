"""Ownership: one server for each folder of jobs.

What runs in a folder's SQLite database is queued again when a server starts on it: a
second server beside the first would take the first one's jobs away. The lock is the
kernel's, and ends with the process that holds it.
"""

import json
import os
import socket
import sys
from pathlib import Path

from mezzotint.errors import InvalidRequest

__all__ = ["FolderOwner", "FolderTaken"]


class FolderTaken(InvalidRequest):
    """Another server uses this folder of jobs."""


class FolderOwner:
    """Holds a folder as long as this process lives, or until released.

    Args:
        folder: The folder of jobs; it exists.

    Raises:
        FolderTaken: If another server holds it; the message names that one.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._file: int | None = None
        if sys.platform == "win32":  # has no such locks
            return
        import fcntl

        path = folder / "server.lock"
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(file)
            os.close(file)
            raise FolderTaken(
                f"the jobs in {folder} belong to another server, {owner}: stop it, or give "
                "this one another home (MEZZOTINT_HOME or jobs.folder)",
                field="jobs.folder",
                value=str(folder),
            ) from None
        os.ftruncate(file, 0)
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.pwrite(file, text.encode(), 0)
        self._file = file

    def release(self) -> None:
        """Let another server have the folder."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _read_owner(file: int) -> str:
    """Return who holds the lock, in words."""
    try:
        owner = json.loads(os.pread(file, 1000, 0))
        return f"process {int(owner['pid'])} on {owner['host']!s}"
    except (OSError, ValueError, KeyError, TypeError):
        return "which has not written its name yet"
