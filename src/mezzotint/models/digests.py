"""Digests: the sha256 of large files, computed once and only for bytes that were seen.

Keyed by path and by what a file system says of a file: device, inode, size, time of
modification and of change (which nobody can set back), in memory and, where a file for
it is given, across processes. A cached answer saves reading gigabytes. A file that was
written within the last second is read again, since its times may not have moved yet.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from mezzotint.errors import WeightsError
from mezzotint.files import digest_file, write_atomically
from mezzotint.models.reading import refuse_special, refuse_special_below
from mezzotint.plain import is_dict

__all__ = ["DIGESTS", "DigestCache", "own_weights"]

_MAX_ENTRIES = 10_000
_WORTH_KEEPING_BYTES = 1 << 20
_SETTLED_NS = 1_000_000_000


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
                if is_dict(stored):
                    known = {str(k): str(v) for k, v in stored.items() if len(str(v)) == 64}
                    self._known = {**known, **self._known}

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file, 64 hex digits.

        Raises:
            OSError: If the file cannot be read.
            WeightsError: If it is a named pipe, a socket or a device.
        """
        path = Path(path).resolve()
        refuse_special(path)
        before, size, changed_ns = _identity(path)
        with self._lock:
            if before in self._known:
                return self._known[before]
        is_settled = time.time_ns() - changed_ns > _SETTLED_NS
        found = digest_file(path)
        if is_settled and _identity(path)[0] == before:
            self._remember(before, found, keep=size >= _WORTH_KEEPING_BYTES)
        return found

    @contextlib.contextmanager
    def loading(self, files: Mapping[Path, str]) -> Generator[None]:
        """Load files inside, and be sure that they are those that were hashed.

        Every file is held against its digest before, and against its own inode, size and
        times after: what was written meanwhile is not taken for what was pinned.

        Args:
            files: The files that are read inside, with the digest that each was pinned by.

        Raises:
            WeightsError: If a file holds other bytes, or was written to inside.
        """
        before: dict[Path, str] = {}
        for path, expected in files.items():
            before[path] = _checked_identity(path)
            if (found := self.digest(path)) != expected:
                raise WeightsError(
                    f"{path} was changed since it was read: expected sha256 {expected}, found "
                    f"{found}; load the model again to take the file as it is"
                )
        with _unchanged(before):
            yield

    @contextlib.contextmanager
    def steady(self, *places: Path) -> Generator[None]:
        """Load files inside that nothing has pinned, and be sure that none is half of another.

        Args:
            places: Files, and folders with everything below them.

        Raises:
            WeightsError: If a file was written to inside, or is no file.
        """
        before: dict[Path, str] = {}
        for place in places:
            refuse_special_below(place)
            inside = place.rglob("*") if place.is_dir() else (place,)
            before |= {path: _checked_identity(path) for path in inside if path.is_file()}
        with _unchanged(before):
            yield

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


@contextlib.contextmanager
def _unchanged(before: Mapping[Path, str]) -> Generator[None]:
    """Refuse what was loaded inside from files that are others now."""
    yield
    for path, identity in before.items():
        if _checked_identity(path) != identity:
            raise WeightsError(f"{path} was written to while it was loaded; load the model again")


def own_weights(module: Any, is_mapped: Callable[[Any], bool] = lambda _: True) -> None:
    """Copy the tensors of a torch module out of the files that they are mapped from.

    Whoever writes to a mapped file changes the network that was made of it. Inside
    :meth:`DigestCache.loading` the copy is of the bytes that were hashed.

    Args:
        module: Any torch module.
        is_mapped: Whether a tensor may be a file's own bytes; others are copies already.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        if is_mapped(tensor):
            tensor.data = tensor.data.clone()


def _identity(path: Path) -> tuple[str, int, int]:
    """Return what names a file's content as long as nobody writes, its size, its change time."""
    status = path.stat()
    times = f"{status.st_mtime_ns}\0{status.st_ctime_ns}"
    key = f"{path}\0{status.st_dev}\0{status.st_ino}\0{status.st_size}\0{times}"
    return key, status.st_size, status.st_ctime_ns


def _checked_identity(path: Path) -> str:
    try:
        return _identity(Path(path).resolve())[0]
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from None


DIGESTS = DigestCache()
"""The digests of this process; the store gives it its file."""
