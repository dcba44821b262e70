"""Reading: files that a request named, and what cannot be read of them.

Readers of foreign files, ours and the libraries', fail in as many ways as files can be
wrong. Whoever named the files is told that they cannot be read, as an error of the model's
files, and the log keeps what exactly went wrong. What is no fault of the files (a full
disk, no memory, no free file descriptors) stays what it is.

What is no file at all is refused before anybody opens it: a named pipe is waited for, and
some devices read, without an end.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Generator
from pathlib import Path

from mezzotint.errors import MezzotintError, ModelError, WeightsError
from mezzotint.observe import log

__all__ = ["reading", "refuse_special", "refuse_special_below"]

_OURS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EROFS}
)
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


_SPECIAL = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def refuse_special(path: Path) -> None:
    """Refuse a path, links followed, at which there is neither a file nor a folder.

    Raises:
        WeightsError: If a named pipe, a socket or a device is there; says which.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except (OSError, ValueError):  # nothing that could be opened
        return
    if kind in _SPECIAL:
        raise WeightsError(
            f"{path} is {_SPECIAL[kind]}; models and adapters are read from plain files alone"
        )


def refuse_special_below(path: Path) -> None:
    """Do what :func:`refuse_special` does for a path and everything in the folder there.

    Raises:
        WeightsError: If a named pipe, a socket or a device is among it; names the first.
    """
    refuse_special(path)
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            refuse_special(Path(folder, name))


@contextlib.contextmanager
def reading(what: str, field: str) -> Generator[None]:
    """Name the field in every error of files that are read in the block.

    Args:
        what: What is read, for people: ``model 'a'``.
        field: The request field that named it.

    Raises:
        ModelError: If the files cannot be read, whatever their reader raised.
    """
    try:
        yield
    except ModelError as error:
        error.field = error.field or field
        raise
    except MezzotintError:
        raise
    except Exception as error:  # a reader of foreign files may raise anything; its log line stays
        if _is_of_this_machine(error):
            raise
        log.warning("model.unreadable", what=what, exception=error)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else ""
        raise WeightsError(
            f"{what} cannot be read{f': {reason}' if reason else ''}; its files are not those "
            "of a model or adapter that is known here. The server's log has the details",
            field=field,
        ) from error


def _is_of_this_machine(error: Exception) -> bool:
    """Tell whether something ran out that has nothing to do with the files."""
    if isinstance(error, OSError):
        return error.errno in _OURS
    return isinstance(error, MemoryError) or any(said in str(error).lower() for said in _MEMORY)
