"""Reading: files that a request named, and what cannot be read of them.

Readers of foreign files, ours and the libraries', fail in as many ways as files can be
wrong. Whoever named the files is told that they cannot be read, as an error of the model's
files, and the log keeps what exactly went wrong. What is no fault of the files (a full
disk, no memory, no free file descriptors) stays what it is.
"""

import contextlib
import errno
from collections.abc import Iterator

from mezzotint.errors import MezzotintError, ModelError, WeightsError
from mezzotint.observe import log

__all__ = ["reading"]

_OURS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EROFS}
)
_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@contextlib.contextmanager
def reading(what: str, field: str) -> Iterator[None]:
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
