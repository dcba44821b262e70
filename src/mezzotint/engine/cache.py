"""Caches: finished pictures by the digest of their plan, and tensors by bytes.

A picture is found again only if its whole plan is the same: the stored
canonical plan is compared on every hit, so not even a forged digest gives one
user another's picture. A picture has an owner, and for others it is not there.
What is kept is encoded bytes, never a shared object that somebody could change.
Memory and disk are bounded by bytes; the least recently used goes first. A file
is checked against the digest of its content, so writing one need not wait for
the disk.
"""

import contextlib
import hashlib
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from mezzotint.files import atomic_path
from mezzotint.planning.plan import Plan
from mezzotint.types import ImageOutput, StageTimings

__all__ = ["ByteCache", "ResultCache", "SharedPictures"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_REMEMBERED_PLANS = 512
_WORTH_A_FILE_S = 0.02  # what is drawn faster is drawn again rather than written


class ByteCache(Generic[K, V]):
    """A mapping bounded by bytes that forgets the least recently used.

    Args:
        max_bytes: Bytes of all values together.
        size: Bytes of one value.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self._max_bytes = max_bytes
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """Return the value and mark it as used, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key]

    def put(self, key: K, value: V) -> None:
        """Keep a value; one that is larger than everything allowed is not kept."""
        self.drop(key)
        size = self._size(value)
        if size > self._max_bytes:
            return
        self._entries[key] = value
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            self.drop(next(iter(self._entries)))

    def drop(self, key: K) -> None:
        """Forget a value if it is there."""
        value = self._entries.pop(key, None)
        if value is not None:
            self.num_bytes -= self._size(value)


class _Entry(NamedTuple):
    """A kept picture, and the canonical text of the plan that it was made from."""

    canonical: str
    image: ImageOutput

    @property
    def num_bytes(self) -> int:
        """Bytes that keeping it takes, roughly."""
        return len(self.image.data) + 2 * len(self.canonical) + 512


@dataclass(frozen=True)
class _Remembered:
    """The plan of a picture that was kept, to explain why another is not found."""

    owner: str
    canonical: str

    @cached_property
    def fields(self) -> dict[str, str]:
        """The plan's values by dotted name, as they are shown."""
        return _flatten(json.loads(self.canonical))


class SharedPictures(Protocol):
    """Pictures that several machines share, by name."""

    def fetch(self, name: str) -> bytes | None:
        """Return what was kept under a name, None if nothing was; may wait for a network."""
        ...

    def offer(self, name: str, data: bytes) -> None:
        """Keep something before long; does not wait."""
        ...


class ResultCache:
    """Finished pictures in memory and on disk, and with other machines.

    Args:
        memory_bytes: Bytes kept in memory, 0 for none.
        disk_bytes: Bytes kept on disk, 0 for none.
        folder: Where on disk, or None.
        shared: Where other machines keep theirs, or None.
    """

    def __init__(
        self,
        *,
        memory_bytes: int,
        disk_bytes: int = 0,
        folder: Path | None = None,
        shared: SharedPictures | None = None,
    ) -> None:
        self._shared = shared
        self._lock = threading.Lock()  # :meth:`fetch` is called beside the others
        self._memory: ByteCache[str, _Entry] = ByteCache(memory_bytes, lambda e: e.num_bytes)
        self._folder = folder if disk_bytes > 0 else None
        self._disk_bytes = disk_bytes
        self._disk: OrderedDict[str, int] = OrderedDict()
        self._disk_used = 0
        self._plans: OrderedDict[str, _Remembered] = OrderedDict()
        self._scan()

    def get(self, plan: Plan, owner: str = "") -> ImageOutput | None:
        """Return the owner's picture of this very plan, or None.

        Its index is that of the request which it was made for.
        """
        digest, canonical = _key(plan, owner), plan.canonical
        with self._lock:
            found = self._memory.get(digest)
            if found is None and digest in self._disk:
                found = self._read(digest)
                if found is not None:
                    self._memory.put(digest, found)
        return found.image if found is not None and found.canonical == canonical else None

    def fetch(self, plans: Sequence[Plan], owner: str = "") -> None:
        """Take the owner's pictures of these very plans from other machines, if they have any.

        Only exact ones, whose bytes are those that would be drawn here. It may wait for a
        network, so it is called before :meth:`get`, from a thread that may wait.
        """
        if self._shared is None:
            return
        for plan in plans:
            if plan.reproducibility != "exact" or self.get(plan, owner) is not None:
                continue
            digest = _key(plan, owner)
            data = self._shared.fetch(digest)
            entry = _unpack(data) if data is not None else None
            if entry is not None and entry.canonical == plan.canonical:
                with self._lock:
                    self._memory.put(digest, entry)

    def put(
        self, plan: Plan, image: ImageOutput, owner: str = "", *, drawn_s: float = math.inf
    ) -> None:
        """Keep a picture; on disk and elsewhere too if it took ``drawn_s`` that are worth it.

        How it was drawn (pixels before encoding, times, attempts) is not kept.
        """
        digest = _key(plan, owner)
        image = replace(image, pixels=None, timings=StageTimings(), attempts=())
        entry = _Entry(plan.canonical, image)
        data = _pack(entry) if drawn_s >= _WORTH_A_FILE_S else b""
        with self._lock:
            self._memory.put(digest, entry)
            self._plans[digest] = _Remembered(owner, plan.canonical)
            while len(self._plans) > _REMEMBERED_PLANS:
                self._plans.popitem(last=False)
            if data:
                self._write(digest, data)
        if data and self._shared is not None and plan.reproducibility == "exact":
            self._shared.offer(digest, data)

    def why_miss(self, plan: Plan, owner: str = "") -> str:
        """Explain a miss: what differs from the most similar picture that the owner has.

        Returns:
            One sentence, naming up to five fields with both values.
        """
        wanted = _flatten(json.loads(plan.canonical))
        items = wanted.items()
        with self._lock:  # pictures are kept from other threads meanwhile
            known = [one for one in self._plans.values() if one.owner == owner]
        nearest = min(known, key=lambda one: len(items ^ one.fields.items()), default=None)
        if nearest is None:
            return "nothing is kept yet"
        kept = nearest.fields
        changed = sorted({field for field, _ in items ^ kept.items()})
        if not changed:
            return "it was kept, but has been forgotten to stay within the cache's bytes"
        sides = [f"{k} {kept.get(k)} -> {wanted.get(k)}" for k in changed[:5]]
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        return f"the most similar kept picture differs in {'; '.join(sides)}{more}"

    def _scan(self) -> None:
        """Find what an earlier process left on disk, oldest first."""
        if self._folder is None or not self._folder.is_dir():
            return
        files: list[tuple[float, str, int]] = []
        for path in self._folder.glob("*.cached"):
            try:
                status = path.stat()
            except OSError:
                continue
            files.append((status.st_mtime, path.stem, status.st_size))
        self._disk.update((stem, size) for _, stem, size in sorted(files))
        self._disk_used = sum(self._disk.values())

    def _path(self, digest: str) -> Path:
        assert self._folder is not None  # noqa: S101 - called only with a folder
        return self._folder / f"{digest}.cached"

    def _write(self, digest: str, data: bytes) -> None:
        """Write one picture, then remove the oldest beyond the budget; no disk is no error."""
        if self._folder is None:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._folder.chmod(0o700)  # what users drew is nobody else's on this machine
            with atomic_path(self._path(digest)) as partial:
                partial.write_bytes(data)
        except OSError:
            return
        self._disk_used += len(data) - self._disk.pop(digest, 0)
        self._disk[digest] = len(data)
        while self._disk_used > self._disk_bytes and self._disk:
            oldest, size = self._disk.popitem(last=False)
            self._disk_used -= size
            self._path(oldest).unlink(missing_ok=True)

    def _read(self, digest: str) -> _Entry | None:
        """Read one picture; anything broken counts as not there and is removed."""
        path = self._path(digest)
        entry = None
        with contextlib.suppress(OSError):
            entry = _unpack(path.read_bytes())
            os.utime(path)
        if entry is None:
            self._disk_used -= self._disk.pop(digest, 0)
            path.unlink(missing_ok=True)
            return None
        self._disk.move_to_end(digest)
        return entry


def _pack(entry: _Entry) -> bytes:
    """Return a picture as a file of its own."""
    image = entry.image
    head = json.dumps(
        {
            "canonical": entry.canonical,
            "index": image.index,
            "seed": image.seed,
            "format": image.format,
            "frames": image.frames,
            "width": image.width,
            "height": image.height,
            "recipe": image.recipe,
            "warnings": image.warnings,
            "sha256": hashlib.sha256(image.data).hexdigest(),
        }
    ).encode()
    return len(head).to_bytes(8, "big") + head + image.data


def _unpack(data: bytes) -> _Entry | None:
    """Read a picture; None if anything of it is broken."""
    try:
        length = int.from_bytes(data[:8], "big")
        head = json.loads(data[8 : 8 + length])
        image = ImageOutput(
            index=int(head["index"]),
            seed=int(head["seed"]),
            format=head["format"],
            frames=int(head["frames"]),
            data=data[8 + length :],
            width=int(head["width"]),
            height=int(head["height"]),
            recipe=head["recipe"],
            warnings=tuple(head["warnings"]),
        )
        is_whole = head["sha256"] == hashlib.sha256(image.data).hexdigest()
    except (ValueError, KeyError, TypeError):
        return None
    return _Entry(head["canonical"], image) if is_whole else None


def _key(plan: Plan, owner: str) -> str:
    """Return under what a picture is kept: 64 hex digits, the plan's own without an owner."""
    if not owner:
        return plan.digest
    return hashlib.sha256(f"{plan.digest} {owner}".encode()).hexdigest()


def _flatten(value: Any, path: str = "") -> dict[str, str]:
    """Turn nested plain data into one level: what is shown of each value, by dotted name."""
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            flat.update(_flatten(item, f"{path}.{key}" if path else str(key)))  # pyright: ignore
        return flat
    return {path: repr(value)}
