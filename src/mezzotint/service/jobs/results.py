"""Results: finished pictures in a folder or a bucket, each under the sha256 of its bytes.

Equal pictures are one object. An object is whole or absent, and its content is
checked against its name when it is read.
"""

import errno
import hashlib

from mezzotint.errors import InvalidRequest, NotReady, WorkFailed
from mezzotint.observe import log
from mezzotint.service.objects import ObjectStore

__all__ = ["NoRoom", "PictureGone", "ResultFiles"]

# Each of them passes: the disk gets room, connections and files are closed, the bucket is back.
_NO_ROOM = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EREMOTEIO}
)
_NOT_NOW = frozenset({errno.EMFILE, errno.ENFILE, errno.EREMOTEIO})
_MARK = "cluster"


class NoRoom(WorkFailed):
    """No room on the disk or no file left to open; the picture can be kept later."""


class PictureGone(InvalidRequest):
    """A picture that a job had is not there any more."""


class ResultFiles:
    """Pictures by digest.

    Args:
        objects: Where they are.
    """

    def __init__(self, objects: ObjectStore) -> None:
        self.objects = objects

    def put(self, data: bytes) -> str:
        """Keep a picture; a file that is damaged is written again.

        Returns:
            Its sha256, 64 hex digits.

        Raises:
            NoRoom: If the disk is full, too many files are open, or the bucket is away.
            WorkFailed: If the disk does not take it for another reason.
        """
        digest = hashlib.sha256(data).hexdigest()
        try:
            if not self.objects.holds(_name(digest), digest):
                self.objects.put(_name(digest), data)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoRoom(f"{_trouble(error)} for a picture: {_shown(error)}") from None
            raise WorkFailed(f"the picture could not be kept: {error.strerror}") from None
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return a picture, or None if it is gone or damaged.

        Raises:
            NotReady: If too many files are open to read it now, or the bucket is away.
        """
        try:
            data = self.objects.get(_name(digest))
        except OSError as error:
            if error.errno in _NOT_NOW:
                raise NotReady(f"no picture can be read now: {_shown(error)}") from None
            return None
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return None
        return data

    def read(self, digest: str) -> bytes:
        """Return a picture.

        Raises:
            PictureGone: If it is missing or damaged.
            NotReady: If too many files are open to read it now, or the bucket is away.
        """
        data = self.get(digest)
        if data is None:
            raise PictureGone(
                f"picture {digest} is not kept any more: its file is missing or damaged; the same "
                "request with Cache-Control: no-cache draws it again"
            )
        return data

    def remove(self, digest: str) -> None:
        """Forget a picture.

        Raises:
            OSError: If it cannot be removed now.
        """
        self.objects.remove(_name(digest))

    def mark(self) -> str | None:
        """Return the id of the cluster whose pictures these are, None if nobody said.

        Raises:
            OSError: If that cannot be read.
        """
        data = self.objects.get(_MARK)
        return data.decode("ascii", "replace") if data is not None else None

    def set_mark(self, cluster: str) -> None:
        """Say whose pictures these are.

        Raises:
            OSError: If that cannot be written.
        """
        self.objects.put(_MARK, cluster.encode())


def _name(digest: str) -> str:
    """Return where the picture with this digest belongs."""
    return f"{digest[:2]}/{digest}"


def _trouble(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "no file can be opened"
    if error.errno == errno.EREMOTEIO:
        return "no place"
    return "no room left" if error.errno == errno.EDQUOT else "the disk has no room"


def _shown(error: OSError) -> str:
    """Return what a client is told; where a bucket is, is the log's business."""
    if error.errno == errno.EREMOTEIO:
        log.error("jobs.bucket_away", reason=error.strerror)
        return "the place of the pictures cannot be reached"
    return str(error.strerror)
