"""Learned: what one machine found out, for all machines with the same environment.

Certificates, measured seconds, ranges of int8 and compiled networks are files below the home
folder, each good for one environment (device, versions, threads). With ``models.shared_url``
they are copied to a folder or bucket that machines share, and a new machine begins with what
the others left there. Finished pictures go there too, under the digest of their plan and
owner, so that an equal request is answered by whoever drew it first.

Everything is kept behind its own sha256; what is damaged or missing is left out with a
warning and found out again here. A place that cannot be reached costs nothing but that.
"""

import contextlib
import hashlib
import queue
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from mezzotint.engine.cache import ResultCache
from mezzotint.engine.config import EngineConfig
from mezzotint.files import write_atomically
from mezzotint.observe import log
from mezzotint.service.buckets import open_objects
from mezzotint.service.objects import ObjectStore

__all__ = ["Shared", "open_results", "open_shared"]

T = TypeVar("T")
_DIGEST = hashlib.sha256().digest_size
_FOLDERS = ("certificates", "costs", "openvino")
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_EVERY_S = 60.0
_SETTLED_S = 10.0  # a file that was written to later may not be whole
_PAUSE_S = 30.0  # for which nobody asks a place that did not answer
_MOST_WAITING = 256  # pictures that wait to be copied; more are not


def open_shared(url: str, cache: Path, environment: str) -> "Shared | None":
    """Return what is shared at ``models.shared_url``, None where that is not set.

    Args:
        url: A folder, or ``s3://bucket/prefix``.
        cache: Folder of caches of this installation.
        environment: What arithmetic depends on here.

    Raises:
        InvalidRequest: If the place is neither.
    """
    if not url:
        return None
    return Shared(open_objects(url, "models.shared_url"), cache, environment)


def open_results(engine: EngineConfig, folder: Path, shared: "Shared | None") -> ResultCache:
    """Return the cache of finished pictures."""
    return ResultCache(
        memory_bytes=engine.cache_memory_bytes,
        disk_bytes=engine.cache_disk_bytes,
        folder=folder,
        shared=shared,
    )


class Shared:
    """Copies to and from the place that machines share, in a thread of its own.

    Args:
        objects: The place.
        cache: Folder of caches of this installation.
        environment: What arithmetic depends on here.
    """

    def __init__(self, objects: ObjectStore, cache: Path, environment: str) -> None:
        self._objects = objects
        self._cache = cache
        self._prefix = f"learned/{hashlib.sha256(environment.encode()).hexdigest()[:32]}/"
        self._known: dict[str, float] = {}  # modification times of what is there already
        self._pictures: queue.Queue[tuple[str, bytes] | None] = queue.Queue(_MOST_WAITING)
        self._away_until = 0.0
        self._ask(self._take, None)
        self._thread = threading.Thread(target=self._run, name="mezzotint-shared", daemon=True)
        self._thread.start()

    def fetch(self, name: str) -> bytes | None:
        """Return a picture that some machine drew, None if there is none; waits for the place."""
        sealed = self._ask(lambda: self._objects.get(_picture(name)), None)
        return self._unsealed(name, sealed)

    def offer(self, name: str, data: bytes) -> None:
        """Copy a picture to the place before long; does not wait."""
        with contextlib.suppress(queue.Full):
            self._pictures.put_nowait((name, data))

    def close(self) -> None:
        """Copy what is left, and stop."""
        with contextlib.suppress(queue.Full):
            self._pictures.put(None, timeout=_EVERY_S)
        self._thread.join(_EVERY_S)

    def _ask(self, work: Callable[[], T], otherwise: T) -> T:
        """Ask the place; where it does not answer, leave it alone for a while."""
        if time.monotonic() < self._away_until:
            return otherwise
        try:
            return work()
        except OSError as error:
            self._away_until = time.monotonic() + _PAUSE_S
            log.warning("shared.away", reason=str(error))
            return otherwise

    def _unsealed(self, name: str, sealed: bytes | None) -> bytes | None:
        data = _unseal(sealed) if sealed is not None else None
        if sealed is not None and data is None:
            log.warning("shared.damaged", name=name)
        return data

    def _take(self) -> None:
        """Copy here what the others know and this machine does not."""
        for name in self._objects.names(self._prefix):
            short = name.removeprefix(self._prefix)
            path = self._cache / short
            is_ours = short.partition("/")[0] in _FOLDERS and _NAME.fullmatch(short)
            if not is_ours or path.exists():
                continue
            data = self._unsealed(name, self._objects.get(name))
            if data is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, data)
                self._known[short] = path.stat().st_mtime

    def _give(self, *, settled_s: float) -> None:
        """Copy to the place what was found out here since the last time."""
        for folder in _FOLDERS:
            for path in sorted((self._cache / folder).rglob("*")):
                short = path.relative_to(self._cache).as_posix()
                if not path.is_file() or not _NAME.fullmatch(short):
                    continue
                changed = path.stat().st_mtime
                if self._known.get(short) == changed or time.time() - changed < settled_s:
                    continue
                self._objects.put(self._prefix + short, _seal(path.read_bytes()))
                self._known[short] = changed

    def _run(self) -> None:
        """Copy pictures as they come, and what was learned now and then."""
        due = time.monotonic() + _EVERY_S
        is_over = False
        while not is_over:
            try:
                item = self._pictures.get(timeout=max(0.0, due - time.monotonic()))
                is_over = item is None
            except queue.Empty:
                item = None
            if item is not None:
                self._ask(partial(self._objects.put, _picture(item[0]), _seal(item[1])), None)
            if is_over or time.monotonic() >= due:
                due = time.monotonic() + _EVERY_S
                settled_s = 0.0 if is_over else _SETTLED_S
                self._ask(partial(self._give, settled_s=settled_s), None)


def _picture(name: str) -> str:
    """Return where a picture belongs."""
    return f"pictures/{name[:2]}/{name}"


def _seal(data: bytes) -> bytes:
    """Put the digest of some bytes in front of them."""
    return hashlib.sha256(data).digest() + data


def _unseal(sealed: bytes) -> bytes | None:
    """Return sealed bytes, None if they are not what was sealed."""
    data = sealed[_DIGEST:]
    return data if hashlib.sha256(data).digest() == sealed[:_DIGEST] else None
