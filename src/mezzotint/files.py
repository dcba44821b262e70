"""Files: whole or absent, and known by their digest.

The few file habits that every room shares. Standard library only.
"""

import contextlib
import hashlib
import os
import secrets
import sys
from collections.abc import Generator
from pathlib import Path

__all__ = [
    "atomic_path",
    "digest_file",
    "exclusive",
    "expanded",
    "is_there",
    "sync_folder",
    "user_home",
    "write_atomically",
]

_CHUNK_BYTES = 1 << 20


def user_home() -> Path:
    """Return the folder of this installation's models, jobs, results and caches.

    ``MEZZOTINT_HOME``, or else the platform's user data folder. The folder need
    not exist. Two homes are two installations.
    """
    if named := os.environ.get("MEZZOTINT_HOME"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "mezzotint"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "mezzotint"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "mezzotint"


def expanded(name: str) -> Path:
    """Return the path that a name means, ``~`` written out where that user has a home."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # no such user
        return Path(name)


def is_there(path: Path) -> bool:
    """Tell whether something is at a path.

    A name that no file can have (10,000 characters, a NUL) and a folder that may not be
    looked into hold nothing for whoever asks.
    """
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Give a temporary path beside ``path`` that becomes ``path`` on success.

    If the body raises (a full disk and Ctrl-C included) the temporary file is
    removed and ``path`` stays as it was.

    Args:
        path: The file that shall exist afterwards, whole.

    Yields:
        The path to write to, in the same folder.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, mode: int = 0o666) -> Path:
    """Write ``data`` to ``path`` so that the file is whole or absent.

    Args:
        path: The file.
        data: All that is to be in it.
        mode: Who may read and write it, less what the process's umask takes away; from its
            first byte on.

    Raises:
        OSError: If the folder is missing, not writable, or the disk is full.
    """
    with (
        atomic_path(path) as partial,
        open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as stream,
    ):
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    sync_folder(Path(path).parent)
    return Path(path)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a loss of power, as their files' contents do.

    File systems that cannot do this for a folder do it in their own time.

    Raises:
        OSError: If the folder cannot be opened.
    """
    if sys.platform == "win32":
        return
    number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(number)
    finally:
        os.close(number)


def digest_file(path: Path) -> str:
    """Return the sha256 of a file, 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive(path: Path) -> Generator[None]:
    """Keep other processes of this machine out of the block, until it ends or this one dies.

    Args:
        path: A file that stands for the lock; made if absent, and left.

    Raises:
        OSError: If the file cannot be opened.
    """
    if sys.platform == "win32":  # has no such locks
        yield
        return
    import fcntl

    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
