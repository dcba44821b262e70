"""Known: what earlier processes learnt of models, so that lists and plans need no tensor library.

A spec is read from a model's files by code that imports torch, which takes seconds; what a
file says does not change while nobody writes it. A fact is kept under everything that it
depends on: for a spec every file of the model with its inode, size and times, the card, the
placement, and this program's own files. Whatever differs is simply not known.
"""

import contextlib
import functools
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from mezzotint.errors import MezzotintError
from mezzotint.files import write_atomically
from mezzotint.models.cards import builtin_cards
from mezzotint.models.config import PlacementConfig
from mezzotint.models.parts import read_json
from mezzotint.models.spec import ModelSpec
from mezzotint.models.store.entries import ModelEntry
from mezzotint.plain import is_dict

__all__ = ["Facts", "key_of", "recall_spec", "remember_spec", "spec_key"]

_MAX_FACTS = 512
_MAX_FILES = 5_000
_SETTLED_NS = 1_000_000_000  # a file written within the last second may be written again in it
_LIBRARIES = ("diffusers", "safetensors", "torch", "transformers")


class Facts:
    """Plain facts by key, in one JSON file that several processes share; the oldest go first.

    Args:
        path: The file; one that cannot be read or written only makes things slower.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts: dict[str, Any] | None = None
        self._lock = threading.Lock()

    def get(self, key: str) -> Any:
        """Return a fact, or None if it is not known."""
        with self._lock:
            if self._facts is None:
                self._facts = self._read()
            return self._facts.get(key)

    def put(self, key: str, fact: Any) -> None:
        """Keep a fact; what other processes learnt meanwhile stays."""
        with self._lock:
            if self._facts is not None and self._facts.get(key) == fact:
                return
            facts = {**self._read(), key: fact}
            while len(facts) > _MAX_FACTS:
                del facts[next(iter(facts))]
            self._facts = facts
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self._path, json.dumps(facts).encode())

    def _read(self) -> dict[str, Any]:
        try:
            stored = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return stored if is_dict(stored) else {}


def key_of(*parts: Any) -> str:
    """Return the key of a fact: the sha256 of everything that it depends on, 64 hex digits."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def spec_key(entry: ModelEntry, placement: PlacementConfig) -> str | None:
    """Return under what a model's spec is known; None if its files are in motion or elsewhere."""
    if entry.card.repo or not str(entry.path) or entry.layout == "handler":
        return None
    try:
        config = entry.path / "config.json"
        base = read_json(config).get("base") if config.is_file() else None
        card = builtin_cards().get(str(base)) if base else None
        roots = [entry.path, *([Path(card.path)] if card else [])]
        files = [file for root in roots for file in _files(root)]
    except (OSError, MezzotintError):
        return None
    newest = max((changed for *_, changed in files), default=0)
    if not files or len(files) > _MAX_FILES or time.time_ns() - newest < _SETTLED_NS:
        return None
    named = (entry.name, entry.version, entry.is_default)
    return key_of("spec", named, repr(entry.card), repr(placement), files, program())


def recall_spec(facts: Facts, key: str | None) -> ModelSpec | None:
    """Return the spec that is kept under a key, if there is one."""
    stored = facts.get(key) if key is not None else None
    if stored is None:
        return None
    try:
        return msgspec.convert(stored, ModelSpec)
    except msgspec.ValidationError:
        return None


def remember_spec(facts: Facts, key: str | None, spec: ModelSpec) -> None:
    """Keep a spec under a key, if it comes back from JSON as it is."""
    if key is None:
        return
    try:
        plain = json.loads(json.dumps(msgspec.to_builtins(spec)))
        is_whole = msgspec.convert(plain, ModelSpec) == spec
    except (TypeError, ValueError, msgspec.ValidationError):  # what JSON cannot hold
        return
    if is_whole:
        facts.put(key, plain)


@functools.cache
def program() -> str:
    """Return what names the code that reads models: its files, and the libraries it reads with."""
    root = Path(__file__).parents[2]
    own = [file for room in ("models", "sampling") for file in _files(root / room, ".py")]
    return key_of(own, [metadata.version(name) for name in _LIBRARIES])


def _files(root: Path, suffix: str = "") -> Iterator[tuple[str, int, int, int, int, int]]:
    """Give what names the content of each file at or below a path while nobody writes to it."""
    for path in [root] if root.is_file() else sorted(root.rglob(f"*{suffix}")):
        status = path.stat()
        if path.is_file():
            yield (
                str(path), status.st_dev, status.st_ino, status.st_size,
                status.st_mtime_ns, status.st_ctime_ns,
            )  # fmt: skip
