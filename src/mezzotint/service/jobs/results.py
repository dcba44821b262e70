"""Results: finished pictures on disk, each under the sha256 of its bytes.

Equal pictures are one file. A file is whole or absent, and its content is
checked against its name when it is read.
"""

import errno
import hashlib
from pathlib import Path

from mezzotint.errors import InvalidRequest, NotReady, WorkFailed
from mezzotint.files import digest_file, sync_folder, write_atomically

__all__ = ["NoRoom", "PictureGone", "ResultFiles"]

# Each of them passes: the disk gets room, connections and files are closed.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE})


class NoRoom(WorkFailed):
    """No room on the disk or no file left to open; the picture can be kept later."""


class PictureGone(InvalidRequest):
    """A picture that a job had is not there any more."""


class ResultFiles:
    """A folder of pictures by digest.

    Args:
        folder: Where they are; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Keep a picture; a file that is damaged is written again.

        Returns:
            Its sha256, 64 hex digits.

        Raises:
            NoRoom: If the disk is full, or too many files are open.
            WorkFailed: If the disk does not take it for another reason.
        """
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(digest)
        try:
            if path.is_file() and digest_file(path) == digest:
                return digest
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self.folder.chmod(0o700)
                sync_folder(self.folder)
            write_atomically(path, data)
        except OSError as error:
            if error.errno in _NO_ROOM:
                is_files = error.errno in (errno.EMFILE, errno.ENFILE)
                what = "no file can be opened" if is_files else "the disk has no room"
                raise NoRoom(f"{what} for a picture: {error.strerror}") from None
            raise WorkFailed(f"the picture could not be kept: {error.strerror}") from None
        return digest

    def get(self, digest: str) -> bytes | None:
        """Return a picture, or None if it is gone or damaged.

        Raises:
            NotReady: If too many files are open to read it now.
        """
        try:
            data = self.path(digest).read_bytes()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise NotReady(f"no picture can be read now: {error.strerror}") from None
            return None
        return data if hashlib.sha256(data).hexdigest() == digest else None

    def read(self, digest: str) -> bytes:
        """Return a picture.

        Raises:
            PictureGone: If it is missing or damaged.
            NotReady: If too many files are open to read it now.
        """
        data = self.get(digest)
        if data is None:
            raise PictureGone(
                f"picture {digest} is not kept any more: its file is missing or damaged; the same "
                "request with Cache-Control: no-cache draws it again"
            )
        return data

    def remove(self, digest: str) -> None:
        """Forget a picture."""
        self.path(digest).unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        """Return where the picture with this digest belongs."""
        return self.folder / digest[:2] / digest
