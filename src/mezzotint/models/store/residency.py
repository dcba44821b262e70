"""Residency: which models are in memory, how many bytes they take, and who goes first.

Models stay under a bound of bytes, least recently used first to go; one that is in
use is never dropped, and however many ask for one that is not there, it is loaded once.
"""

import contextlib
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mezzotint.models.backends.mapped import return_memory
from mezzotint.models.config import PlacementConfig

if TYPE_CHECKING:
    from mezzotint.models.base import Model

__all__ = ["Residency"]

_Key = tuple[str, PlacementConfig]
"""A model's full name and where it is placed: another placement is another model in memory."""


@dataclass(slots=True)
class _Resident:
    """A model in memory, and who uses it."""

    model: "Model"
    source: object
    users: int = 0
    used_at: int = 0

    def is_from(self, source: object) -> bool:
        """Whether it was loaded from what is at hand now; the newest of equal ones is kept."""
        if self.source is not source:  # comparing all that is known of a model takes a while
            if self.source != source:
                return False
            self.source = source
        return True


class Residency:
    """Models in memory; safe to use from any thread.

    Args:
        max_bytes: Bytes of weights above which models that nobody uses go; 0 for no bound.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._residents: dict[_Key, _Resident] = {}
        self._loading: dict[_Key, threading.Lock] = {}
        self._lock = threading.RLock()
        self._clock = 0

    @contextlib.contextmanager
    def use(self, key: _Key, load: "Callable[[], Model]", *, source: object) -> "Generator[Model]":
        """Give a model that stays in memory for the length of the block.

        Args:
            key: Which one.
            load: Makes it if it is not there. Its errors are passed on, and the next who
                asks tries again. Others may use other models meanwhile.
            source: What it is loaded from; one in memory that came from another is replaced,
                however long ago its loading began.
        """
        with self._lock:
            turn = self._loading.setdefault(key, threading.Lock())
        with turn:
            resident = self._pin(key, source)
            if resident is None:
                model = load()
                with self._lock:
                    resident = self._residents[key] = _Resident(model, source)
                    self._pin(key, source)
                self._evict(keep=key)
        try:
            yield resident.model
        finally:
            with self._lock:
                resident.users -= 1
            self._evict(keep=key)

    def find(self, key: _Key, source: object) -> "Model | None":
        """Return a model that is in memory, for a look at it; None if it is not there."""
        with self._lock:
            resident = self._residents.get(key)
            return resident.model if resident is not None and resident.is_from(source) else None

    def has(self, name: str) -> bool:
        """Tell whether a model is in memory, wherever it is placed."""
        with self._lock:
            return any(known == name for known, _ in self._residents)

    def drop(self, name: str) -> None:
        """Forget a model, wherever it is placed; who uses it keeps it until they are done."""
        with self._lock:
            for key in [key for key in self._residents if key[0] == name]:
                del self._residents[key]

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each model's weights in memory, by its full name."""
        found: dict[str, int] = {}
        with self._lock:
            for (name, _), resident in self._residents.items():
                found[name] = found.get(name, 0) + resident.model.num_bytes
        return found

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights in memory."""
        with self._lock:
            return sum(resident.model.num_bytes for resident in self._residents.values())

    def _pin(self, key: _Key, source: object) -> _Resident | None:
        with self._lock:
            resident = self._residents.get(key)
            if resident is None or not resident.is_from(source):
                return None
            self._clock += 1
            resident.users += 1
            resident.used_at = self._clock
            return resident

    def _evict(self, *, keep: _Key) -> None:
        """Drop least recently used models until the bound holds; spare those in use.

        What they took goes back to the system before the next model's weights are read.
        """
        if self._max_bytes and self._drop_idle(keep):
            return_memory()

    def _drop_idle(self, keep: _Key) -> bool:
        """Drop models that nobody uses while there are more bytes than may be; tell if any."""
        with self._lock:
            idle = sorted(
                (resident.used_at, key)
                for key, resident in self._residents.items()
                if resident.users == 0 and key != keep
            )
            has_dropped = False
            for _, key in idle:
                if self.num_bytes <= self._max_bytes:
                    break
                del self._residents[key]
                has_dropped = True
            return has_dropped
