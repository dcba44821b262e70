"""Safe unpacking: archives from anyone, judged by their table of contents first.

Names that would have to be cleaned are refused instead of cleaned: an archive with
``../x`` in it was made to harm. Links, duplicates, encrypted and oversized entries
are refused before a byte is written; sizes are counted while unpacking as well,
since a table of contents can lie. Whatever goes wrong, nothing half-unpacked stays.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from mezzotint.errors import ArchiveError

__all__ = ["ArchiveLimits", "Contents", "Entry", "check_name", "open_tar", "open_zip", "unpack"]

_COMPONENT = re.compile(r"[A-Za-z0-9_+=@()\[\], -][A-Za-z0-9._+=@()\[\], -]*")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveLimits:
    """What an archive may hold.

    Args:
        max_bytes: Bytes of all files together, unpacked.
        max_files: Number of entries.
        max_ratio: Unpacked bytes for one packed byte, beyond the first megabyte.
        max_name: Characters of a whole name.
        max_depth: Folders above a file.
    """

    max_bytes: int = 64 << 30
    max_files: int = 2000
    max_ratio: float = 200.0
    max_name: int = 240
    max_depth: int = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """One regular file of an archive: name, unpacked size, packed size."""

    name: str
    size: int
    packed: int


class Contents(Protocol):
    """An opened archive: its files in order, and their bytes."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The files, in order."""
        ...

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open one file for reading."""
        ...


@dataclass(frozen=True, slots=True)
class _Opened:
    entries: tuple[Entry, ...]
    opener: Callable[[str], contextlib.AbstractContextManager[IO[bytes]]]

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return self.opener(name)


def check_name(name: str, limits: ArchiveLimits, *, source: str) -> str:
    """Return the name if it is a plain relative path, else refuse it.

    Raises:
        ArchiveError: If it is absolute, climbs, is hidden, is too long, or has
            characters that mean something to a file system or terminal.
    """
    shown = repr(name[:80] + ("..." if len(name) > 80 else ""))
    parts = name.split("/")
    if len(name) > limits.max_name:
        raise ArchiveError(f"{source}: entry name {shown} has {len(name)} characters")
    if name.startswith("/") or "\\" in name or ":" in name or ".." in parts:
        raise ArchiveError(f"{source}: entry {shown} would land outside the folder; refused")
    if len(parts) > limits.max_depth + 1 or not all(_COMPONENT.fullmatch(p) for p in parts):
        raise ArchiveError(f"{source}: entry {shown} has a name that is not plain; refused")
    return name


def _check_all(entries: list[Entry], limits: ArchiveLimits, source: str) -> tuple[Entry, ...]:
    """Refuse bombs and clashes by the table of contents."""
    if len(entries) > limits.max_files:
        raise ArchiveError(f"{source} holds {len(entries)} files, at most {limits.max_files}")
    seen: dict[str, str] = {}
    total = packed = 0
    for entry in entries:
        check_name(entry.name, limits, source=source)
        for place in (entry.name, *map(str, PurePosixPath(entry.name).parents)):
            first = seen.setdefault(place.lower(), place)
            if first != place:
                raise ArchiveError(f"{source}: {place!r} and {first!r} differ by case alone")
        total, packed = total + entry.size, packed + entry.packed
        if entry.size > (1 << 20) + limits.max_ratio * entry.packed:
            raise ArchiveError(
                f"{source}: {entry.name} unpacks {entry.packed} bytes to {entry.size}; refused"
            )
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArchiveError(f"{source} holds {twice!r} twice")
    for name in names:
        if any(str(parent) in set(names) for parent in PurePosixPath(name).parents):
            raise ArchiveError(f"{source}: {name!r} lies inside a file")
    if total > limits.max_bytes:
        raise ArchiveError(f"{source} unpacks to {total} bytes, at most {limits.max_bytes}")
    return tuple(entries)


@contextlib.contextmanager
def open_zip(path: Path | IO[bytes], limits: ArchiveLimits, *, source: str) -> Generator[Contents]:
    """Open a zip and check its table of contents.

    Raises:
        ArchiveError: If it is no zip, or anything in it is not allowed.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ArchiveError(f"{source} is no readable zip: {error}") from None
    with archive:
        entries: list[Entry] = []
        infos = archive.infolist()
        if len(infos) > limits.max_files:
            raise ArchiveError(f"{source} holds {len(infos)} entries, at most {limits.max_files}")
        for info in infos:
            mode = info.external_attr >> 16
            if info.is_dir():
                check_name(info.filename.rstrip("/"), limits, source=source)
                continue
            if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise ArchiveError(f"{source}: {info.filename!r} is a link or device; refused")
            if info.flag_bits & 0x1:
                raise ArchiveError(f"{source}: {info.filename!r} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"{source}: {info.filename!r} is packed in an unusual way")
            # The raw name in the file may differ from what zipfile makes of it.
            raw = info.orig_filename
            entries.append(Entry(raw, info.file_size, info.compress_size))
        checked = _check_all(entries, limits, source)
        yield _Opened(checked, archive.open)


@contextlib.contextmanager
def open_tar(path: Path, limits: ArchiveLimits, *, source: str) -> Generator[Contents]:
    """Open a tar, plain or gzipped, and check its table of contents.

    Raises:
        ArchiveError: If it is no tar, or anything in it is not allowed.
    """
    try:
        with tarfile.open(path, "r:*") as archive:
            entries: list[Entry] = []
            members: dict[str, tarfile.TarInfo] = {}
            total = 0
            for count, info in enumerate(archive, 1):
                total += info.size
                if count > limits.max_files or total > limits.max_bytes:
                    raise ArchiveError(
                        f"{source} holds more than {limits.max_files} files or "
                        f"{limits.max_bytes} bytes"
                    )
                name = info.name.removeprefix("./")
                if info.isdir():
                    if name not in ("", "."):
                        check_name(name, limits, source=source)
                    continue
                if not info.isreg():
                    raise ArchiveError(f"{source}: {info.name!r} is a link or device; refused")
                members[name] = info
                entries.append(Entry(name, info.size, info.size))
            packed = Path(path).stat().st_size
            if total > (1 << 20) + limits.max_ratio * packed:
                raise ArchiveError(f"{source} unpacks {packed} bytes to {total}; refused")
            checked = _check_all(entries, limits, source)

            def opener(name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
                stream = archive.extractfile(members[name])
                if stream is None:
                    raise ArchiveError(f"{source}: {name!r} has no content")
                return stream

            yield _Opened(checked, opener)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ArchiveError(f"{source} is no readable tar: {error}") from None


def unpack(
    contents: Contents,
    target: Path,
    *,
    source: str,
    names: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Write the files of an archive into a folder that does not exist yet.

    Files are written into a hidden folder beside it, which becomes ``target`` when
    all are there.

    Args:
        contents: The opened archive.
        target: Folder to make.
        source: What to call the archive in errors.
        names: Entry name to path inside the folder, to take some and rename them;
            None takes all as they are.

    Returns:
        The sha256 of each file by its path inside the folder.

    Raises:
        ArchiveError: If an entry is broken or longer than it says.
        OSError: If it cannot be written.
    """
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    digests: dict[str, str] = {}
    try:
        partial.mkdir(parents=True)
        for entry in contents.entries:
            name = entry.name if names is None else names.get(entry.name)
            if name is None:
                continue
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            digests[name] = _copy(contents, entry, place, source)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digests


def _copy(contents: Contents, entry: Entry, place: Path, source: str) -> str:
    """Copy one file and return its sha256."""
    digest, written = hashlib.sha256(), 0
    try:
        with contents.open(entry.name) as reader, place.open("xb") as writer:
            while chunk := reader.read(_CHUNK_BYTES):
                written += len(chunk)
                if written > entry.size:
                    break
                digest.update(chunk)
                writer.write(chunk)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, KeyError) as error:
        raise ArchiveError(f"{source}: {entry.name!r} is broken: {error}") from None
    if written != entry.size:
        raise ArchiveError(f"{source}: {entry.name!r} is not as long as it says")
    return digest.hexdigest()
