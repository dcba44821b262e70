"""Outputs: finished pictures become files, whole, under names that lose nothing.

Without ``-o`` a picture is called after its words and its seed and never takes
the place of another file. With ``-o`` it is called what was asked; a file that
it replaces is named on standard error.
"""

import contextlib
import dataclasses
import errno
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Any

from mezzotint.cli.flags import WrongFlag
from mezzotint.errors import WorkFailed
from mezzotint.files import write_atomically
from mezzotint.request import GenerationRequest
from mezzotint.types import GenerationResult, ImageOutput

__all__ = ["Destination", "describe", "picture_stem"]

SUFFIXES = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "gif": ".gif",
    "apng": ".apng",
    "mp4": ".mp4",
}
FORMATS = {suffix: name for name, suffix in SUFFIXES.items()} | {".jpeg": "jpeg"}
MOVING = ("gif", "apng", "mp4")
_STEM_LENGTH = 60


def picture_stem(request: GenerationRequest, seed: int) -> str:
    """Return the name of a picture without its suffix: its words, then its seed."""
    words = re.sub(r"[^\w]+", "-", request.prompt.lower(), flags=re.UNICODE).strip("-_")
    while len(words.encode()) > _STEM_LENGTH:
        words = words[:-1]
    model = re.sub(r"[^\w.]+", "-", Path(request.model).name).strip("-.")
    return f"{words.strip('-') or model or 'picture'}-{seed}"


class Destination:
    """Where the pictures of one request go.

    Args:
        path: What ``-o`` said: a file, ``-`` for standard output, or None.
        folder: Folder for pictures without ``-o``; made when it is needed.
        several: Whether the request makes more than one picture.
        replace: Whether ``-o`` may take the place of a file.

    Raises:
        WrongFlag: If nothing could be written there; before any work is done.
    """

    def __init__(
        self, path: Path | None, folder: Path, *, several: bool = False, replace: bool = True
    ) -> None:
        self._path, self._folder = path, folder
        self._several, self._replace = several, replace
        self.is_stream = path is not None and str(path) == "-"
        if self.is_stream:
            if several:
                raise WrongFlag("--output", "only one picture fits on standard output")
        elif path is None:
            _check_folder(folder, "--output-dir", make=True)
        else:
            self._check_file(path)

    def write(self, image: ImageOutput, request: GenerationRequest) -> Path | None:
        """Write one picture; None where it went to standard output.

        Raises:
            WorkFailed: If the disk does not take it; nothing half-written stays.
        """
        try:
            if self._path is None:
                stem = picture_stem(request, image.seed)
                return write_fresh(self._folder, stem, SUFFIXES[image.format], image.data)
            if self.is_stream:
                sys.stdout.buffer.write(image.data)
                sys.stdout.buffer.flush()
                return None
            return self._write_named(self._path, image)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = self._path or self._folder
            raise WorkFailed(f"cannot write to {where}: {error.strerror or error}") from None

    def _write_named(self, path: Path, image: ImageOutput) -> Path:
        if _is_special(path):  # a pipe or a device: rename would replace the device itself
            with path.open("wb") as stream:
                stream.write(image.data)
            return path
        if self._several:
            path = path.with_name(f"{path.stem}-{image.index:04d}{path.suffix}")
        if path.exists():
            if not self._replace:
                raise WorkFailed(f"{path} exists and --no-clobber was given")
            print(f"replaced {path}", file=sys.stderr)
        return write_atomically(path, image.data)

    def _check_file(self, path: Path) -> None:
        if path.is_dir():
            raise WrongFlag("--output", f"{path} is a folder; name a file, or use --output-dir")
        if path.suffix and path.suffix.lower() not in FORMATS and not _is_special(path):
            raise WrongFlag(
                "--output", f"must end in {', '.join(FORMATS)}, got {path.name!r}", "a picture name"
            )
        if path.exists() and not self._replace and not self._several:
            raise WrongFlag("--output", f"{path} exists and --no-clobber was given")
        _check_folder(path.absolute().parent, "--output", make=False)


def write_fresh(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Write ``data`` under a name that no other file has, also not in this moment.

    The name is ``stem`` and, where that is taken, ``stem-2``, ``stem-3``, ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{stem}.{secrets.token_hex(6)}.partial"
    try:
        write_atomically(partial, data)
        number = 1
        while True:
            path = folder / f"{stem}{f'-{number}' if number > 1 else ''}{suffix}"
            with contextlib.suppress(FileExistsError):
                _take_name(partial, path)
                return path
            number += 1
    finally:
        partial.unlink(missing_ok=True)


def _take_name(partial: Path, path: Path) -> None:
    """Give a finished file a name, or fail if the name is taken."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError as error:  # some file systems have no links
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.ENOSYS):
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        os.replace(partial, path)


def _check_folder(folder: Path, flag: str, *, make: bool) -> None:
    """Refuse a folder that cannot take a file."""
    if make:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if folder.is_file() else error.strerror
            raise WrongFlag(flag, f"cannot make the folder {folder}: {reason}") from None
    if not folder.is_dir():
        raise WrongFlag(flag, f"the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise WrongFlag(flag, f"the folder {folder} is not writable")


def _is_special(path: Path) -> bool:
    """Tell whether a path is a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def describe(result: GenerationResult, paths: dict[int, Path | None]) -> dict[str, Any]:
    """Return a result as the native answer, with ``path`` in place of the bytes."""
    return {
        "id": result.id,
        "status": "succeeded",
        "images": [
            {
                "index": image.index,
                "seed": image.seed,
                "path": str(paths[image.index]) if paths.get(image.index) else None,
                "format": image.format,
                "width": image.width,
                "height": image.height,
                **({"frames": image.frames} if image.frames > 1 else {}),
                "recipe_digest": image.recipe_digest,
                "warnings": list(image.warnings),
                "attempts": [dataclasses.asdict(attempt) for attempt in image.attempts],
                "timings": dataclasses.asdict(image.timings),
            }
            for image in result.images
        ],
        "plan": dict(result.plan),
        "cache": result.cache,
        "warnings": list(result.warnings),
    }
