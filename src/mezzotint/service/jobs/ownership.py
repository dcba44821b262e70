"""Ownership: one server for each home, and for each folder of jobs.

What runs in a folder's SQLite database is queued again when a server starts on it: a
second server beside the first would take the first one's jobs away. In a home, two would
each count as their own what is kept of results, exports and models, and delete it under
one another. The lock is the kernel's, and ends with the process that holds it.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Literal

from mezzotint.errors import InvalidRequest

__all__ = ["FolderOwner", "FolderTaken", "server_of"]


_KINDS = {
    "home": ("home.lock", "the home {} belongs", "home"),
    "jobs": ("server.lock", "the jobs in {} belong", "jobs.folder"),
}
"""Of each kind of folder: the file that is locked, how it is told, the setting."""


class FolderTaken(InvalidRequest):
    """Another server uses this folder."""


class FolderOwner:
    """Holds a folder as long as this process lives, or until released.

    Args:
        folder: The folder; it exists.
        of: What it is: the home of an installation, or a folder of jobs. One folder may be both.

    Raises:
        FolderTaken: If another server holds it; the message names that one.
        OSError: If the folder cannot be written.
    """

    def __init__(self, folder: Path, of: Literal["home", "jobs"] = "jobs") -> None:
        self._file: int | None = None
        if sys.platform == "win32":  # has no such locks
            return
        import fcntl

        name, what, field = _KINDS[of]
        path = folder / name
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read_owner(file)
            os.close(file)
            raise FolderTaken(
                f"{what.format(folder)} to another server, {owner}: stop it, or give this one "
                f"another (MEZZOTINT_HOME{'' if of == 'home' else ' or jobs.folder'})",
                field=field,
                value=str(folder),
            ) from None
        self._file = file
        self.tell()

    def tell(self, url: str = "") -> None:
        """Write down who holds the folder, and where it answers once it does."""
        if self._file is not None:
            about = {"pid": os.getpid(), "host": socket.gethostname(), "url": url}
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(about).encode(), 0)

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


def server_of(home: Path) -> str:
    """Return the address of the server that has a home at this moment, "" for none.

    Only where the system has locks: what a dead server wrote would be believed elsewhere.
    """
    if sys.platform == "win32":
        return ""
    import fcntl

    try:
        with (home / _KINDS["home"][0]).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return str(json.loads(file.read(1000)).get("url", ""))
    except (OSError, ValueError, AttributeError):
        pass
    return ""
