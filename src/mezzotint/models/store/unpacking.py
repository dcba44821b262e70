"""Unpacking: the model in an archive, unpacked once under its digest."""

import os
import threading
from pathlib import Path

from mezzotint.errors import ArchiveError, InvalidRequest
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.archive import Unpacked, inspect_archive, unpack_archive
from mezzotint.models.formats.identify import identify
from mezzotint.models.formats.torchserve_archive import unpack_mar

__all__ = ["unpack_cached"]

_UNPACKING = threading.Lock()


def unpack_cached(path: Path, cache: Path) -> Unpacked:
    """Unpack an archive of any kind once, under its digest.

    Args:
        path: A ``.mzt``, or a TorchServe archive (file or folder).
        cache: Folder of unpacked archives.

    Raises:
        ArchiveError: If it is unsafe or broken.
    """
    path = Path(path)
    if identify(path) == "mar":
        return unpack_mar(path, cache)
    target = cache / DIGESTS.digest(path)[:32]
    if target.is_dir():
        manifest = inspect_archive(path)
    else:
        cache.mkdir(parents=True, exist_ok=True)
        with _UNPACKING:
            manifest = inspect_archive(path) if target.is_dir() else unpack_archive(path, target)
    os.utime(target)
    inner = target / next(iter(manifest.files)) if manifest.layout == "single_file" else target
    try:
        card = manifest.card()
    except InvalidRequest as error:
        raise ArchiveError(f"{path}: {error}") from None
    return Unpacked(path=inner, layout=manifest.layout, card=card, digest=manifest.digest)
