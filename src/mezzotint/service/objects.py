"""Objects: bytes under names, in a folder or anywhere else that holds bytes.

The port through which finished pictures, and what one machine learned for the others, are
kept. Names are paths of plain letters with ``/`` between them. What speaks to a bucket is
:mod:`mezzotint.service.buckets`.
"""

import shutil
from pathlib import Path
from typing import Protocol

from mezzotint.files import atomic_path, digest_file, sync_folder, write_atomically

__all__ = ["FolderObjects", "ObjectStore"]


class ObjectStore(Protocol):
    """Holds whole objects by name; safe to call from several threads, and blocks.

    Every method raises ``OSError`` where the store cannot be reached or has no room.
    """

    def get(self, name: str) -> bytes | None:
        """Return an object, None if there is none."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Keep an object, whole or not at all; one of the same name is exchanged."""
        ...

    def get_file(self, name: str, path: Path) -> bool:
        """Copy an object into a file that is not there yet; False if there is none.

        Nothing is left where it cannot be copied whole.
        """
        ...

    def put_file(self, name: str, path: Path) -> None:
        """Keep the content of a file, whole or not at all, without having it in memory."""
        ...

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with ``prefix``, which ends with ``/``."""
        ...

    def holds(self, name: str, digest: str) -> bool:
        """Whether an object is known to have a sha256, by its content.

        False also where finding out costs as much as writing it again.
        """
        ...

    def remove(self, name: str) -> None:
        """Forget an object, if there is one."""
        ...


class FolderObjects:
    """Objects as files below a folder, which nobody else on the machine may read.

    Args:
        folder: Where they are; made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> bytes | None:
        """Return an object, None if there is none."""
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, data: bytes) -> None:
        """Keep an object, whole or not at all."""
        write_atomically(self._made(name), data)

    def get_file(self, name: str, path: Path) -> bool:
        """Copy an object into a file; False if there is none."""
        try:
            with atomic_path(path) as partial:
                shutil.copyfile(self.path(name), partial)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def put_file(self, name: str, path: Path) -> None:
        """Keep the content of a file, whole or not at all."""
        with atomic_path(self._made(name)) as partial:
            shutil.copyfile(path, partial)

    def _made(self, name: str) -> Path:
        """Return the file of an object, in a folder that is there."""
        path = self.path(name)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.chmod(0o700)
            sync_folder(self.folder)
        return path

    def names(self, prefix: str) -> list[str]:
        """Return the names that begin with ``prefix``."""
        found = (p for p in self.path(prefix).rglob("*") if p.is_file())
        return sorted(p.relative_to(self.folder).as_posix() for p in found)

    def holds(self, name: str, digest: str) -> bool:
        """Whether an object has a sha256, by its content."""
        path = self.path(name)
        return path.is_file() and digest_file(path) == digest

    def remove(self, name: str) -> None:
        """Forget an object, if there is one."""
        self.path(name).unlink(missing_ok=True)

    def path(self, name: str) -> Path:
        """Return the file of an object."""
        return self.folder / name
