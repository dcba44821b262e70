"""Digests: the sha256 of large files, computed once.

Keyed by path, size and modification time to the nanosecond, in memory and, where
a file for it is given, across processes. A cached answer saves reading gigabytes;
it proves nothing against somebody who can write the files and set their times.
"""

import contextlib
import json
import threading
from pathlib import Path

from mezzotint.files import digest_file, write_atomically

__all__ = ["DIGESTS", "DigestCache"]

_MAX_ENTRIES = 10_000
_WORTH_KEEPING_BYTES = 1 << 20


class DigestCache:
    """Remembers the digests of files that did not change.

    Args:
        path: JSON file that keeps them between processes, or None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        self._lock = threading.Lock()
        if path is not None:
            self.keep_in(path)

    def keep_in(self, path: Path) -> None:
        """Read what a file knows and keep new digests there from now on."""
        with self._lock:
            self._path = path
            with contextlib.suppress(OSError, ValueError):
                stored = json.loads(path.read_text("utf-8"))
                if isinstance(stored, dict):
                    known = {str(k): str(v) for k, v in stored.items() if len(str(v)) == 64}
                    self._known = {**known, **self._known}

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file, 64 hex digits.

        Raises:
            OSError: If the file cannot be read.
        """
        path = Path(path).resolve()
        status = path.stat()
        key = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
        with self._lock:
            if key in self._known:
                return self._known[key]
        found = digest_file(path)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) == (status.st_size, status.st_mtime_ns):
            self._remember(key, found, keep=status.st_size >= _WORTH_KEEPING_BYTES)
        return found

    def _remember(self, key: str, found: str, *, keep: bool) -> None:
        with self._lock:
            self._known[key] = found
            while len(self._known) > _MAX_ENTRIES:
                del self._known[next(iter(self._known))]
            if keep and self._path is not None:
                # A cache that cannot be written is a slower one, not an error.
                with contextlib.suppress(OSError):
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    write_atomically(self._path, json.dumps(self._known).encode())


DIGESTS = DigestCache()
"""The digests of this process; the store gives it its file."""
