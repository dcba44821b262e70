"""Residency: which weights are in memory, how many bytes they take, and who goes first.

Models, what adapters add to them, and upscalers stay under one bound of bytes, least recently
used first to go; one that is in use is never dropped, and however many ask for one that is not
there, it is loaded once. What adapters made of a model goes with it.
"""

import contextlib
import threading
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from mezzotint.models.backends.mapped import return_memory

__all__ = ["Residency", "SharedWeights", "Weights"]

_Key = tuple[str, Hashable]
"""A model's full name and where it is placed: another placement is another model in memory.
What is no model has a name in brackets, which no model has."""


class Weights(Protocol):
    """What takes memory."""

    @property
    def num_bytes(self) -> int:
        """Bytes of weights."""
        ...


@runtime_checkable
class SharedWeights(Protocol):
    """What takes memory together with others."""

    def parts(self) -> Mapping[int, int]:
        """Return the bytes of each part by its identity; equal ones are counted once."""
        ...


T = TypeVar("T", bound=Weights)


@dataclass(slots=True)
class _Resident:
    """Weights in memory, and who uses them."""

    weights: Any
    source: object
    owner: object = None
    users: int = 0
    used_at: int = 0

    def parts(self) -> Mapping[int, int]:
        """Return the bytes of each part by its identity."""
        if isinstance(self.weights, SharedWeights):
            return self.weights.parts()
        return {id(self.weights): self.weights.num_bytes}

    def is_from(self, source: object) -> bool:
        """Whether it was loaded from what is at hand now; the newest of equal ones is kept."""
        if self.source is not source:  # comparing all that is known of a model takes a while
            if self.source != source:
                return False
            self.source = source
        return True


class Residency:
    """Weights in memory; safe to use from any thread.

    Args:
        max_bytes: Bytes above which weights that nobody uses go; 0 for no bound.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._residents: dict[_Key, _Resident] = {}
        self._loading: dict[_Key, threading.Lock] = {}
        self._lock = threading.RLock()
        self._clock = 0

    @contextlib.contextmanager
    def use(
        self, key: _Key, load: Callable[[], T], *, source: object, owner: object = None
    ) -> Generator[T]:
        """Give weights that stay in memory for the length of the block.

        Args:
            key: Which ones.
            load: Makes them if they are not there. Its errors are passed on, and the next who
                asks tries again. Others may use other weights meanwhile.
            source: What they are loaded from; those in memory that came from another are
                replaced, however long ago their loading began.
            owner: The model that they are of no use without. They go when it goes, and are not
                kept where it has gone already.
        """
        with self._lock:
            turn = self._loading.setdefault(key, threading.Lock())
        with turn:
            resident = self._pin(key, source)
            if resident is None:
                resident = _Resident(load(), source, owner)
                with self._lock:
                    self._remove(key)
                    is_kept = owner is None or any(
                        other.weights is owner for other in self._residents.values()
                    )
                    if is_kept:
                        self._residents[key] = resident
                        self._pin(key, source)
                    else:
                        resident.users += 1
                self._evict(keep=key)
        try:
            yield resident.weights
        finally:
            with self._lock:
                resident.users -= 1
            self._evict(keep=key)

    def find(self, key: _Key, source: object) -> Any:
        """Return weights that are in memory, for a look at them; None if they are not there."""
        with self._lock:
            resident = self._residents.get(key)
            return resident.weights if resident is not None and resident.is_from(source) else None

    def bound(self, name: str, most: int) -> None:
        """Drop what is called that and nobody uses, least recently used first, but for so many."""
        with self._lock:
            named = [
                (key, resident)
                for key, resident in sorted(self._residents.items(), key=_by_use)
                if key[0] == name
            ]
            for key, resident in named[: max(len(named) - most, 0)]:
                if resident.users == 0:
                    self._remove(key)

    def has(self, name: str) -> bool:
        """Tell whether a model is in memory, wherever it is placed."""
        with self._lock:
            return any(known == name for known, _ in self._residents)

    def drop(self, name: str) -> None:
        """Forget a model, wherever it is placed; who uses it keeps it until they are done."""
        with self._lock:
            for key in [key for key in self._residents if key[0] == name]:
                self._remove(key)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of weights in memory by name, of a model its full name."""
        found: dict[str, dict[int, int]] = {}
        with self._lock:
            for (name, _), resident in self._residents.items():
                found.setdefault(name, {}).update(resident.parts())
        return {name: sum(parts.values()) for name, parts in found.items()}

    @property
    def num_bytes(self) -> int:
        """Bytes of all weights in memory."""
        parts: dict[int, int] = {}
        with self._lock:
            for resident in self._residents.values():
                parts.update(resident.parts())
        return sum(parts.values())

    def _remove(self, key: _Key) -> None:
        """Forget weights, and what is of no use without them."""
        resident = self._residents.pop(key, None)
        if resident is None:
            return
        turn = self._loading.get(key)
        if turn is not None and not turn.locked():
            del self._loading[key]
        for other in [k for k, r in self._residents.items() if r.owner is resident.weights]:
            self._remove(other)

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
        """Drop least recently used weights until the bound holds; spare those in use.

        What they took goes back to the system before the next model's weights are read.
        """
        if self._max_bytes and self._drop_idle(keep):
            return_memory()

    def _drop_idle(self, keep: _Key) -> bool:
        """Drop what nobody uses while there are more bytes than may be; tell if any."""
        with self._lock:
            spared = {keep, self._newest_of(keep)}
            idle = [
                key
                for key, resident in sorted(self._residents.items(), key=_by_use)
                if resident.users == 0 and key not in spared
            ]
            has_dropped = False
            for key in idle:
                if self.num_bytes <= self._max_bytes:
                    break
                has_dropped = has_dropped or key in self._residents
                self._remove(key)
            return has_dropped

    def _newest_of(self, key: _Key) -> _Key | None:
        """Return what was last used of what is of no use without these weights."""
        owner = self._residents.get(key)
        owned = [
            (resident.used_at, other)
            for other, resident in self._residents.items()
            if owner is not None and resident.owner is owner.weights
        ]
        return max(owned, key=lambda pair: pair[0])[1] if owned else None


def _by_use(item: tuple[_Key, _Resident]) -> int:
    return item[1].used_at
