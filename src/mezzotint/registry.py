"""Registry: a named mapping whose error lists what exists.

One registry per family of things, written in the file that owns the family.
Plug-ins add names through entry points, which are looked up on the first miss;
nothing registers itself by being imported.
"""

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

from mezzotint.errors import UnknownName

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """A read-only mapping from names to things, extended by entry points.

    Args:
        kind: What the things are, in the singular, for the error message.
        entries: The built-in things by name.
        group: Entry-point group that plug-ins use, e.g. ``"mezzotint.gates"``.

    Example:
        >>> schedulers = Registry("scheduler", {"euler": 1})
        >>> schedulers["euler"]
        1
    """

    def __init__(self, kind: str, entries: Mapping[str, T], *, group: str | None = None) -> None:
        self._kind = kind
        self._entries = dict(entries)
        self._group = group
        self._plugins_loaded = group is None

    def __getitem__(self, name: str) -> T:
        """Return the thing called ``name``.

        Raises:
            UnknownName: If neither the built-in entries nor a plug-in has it.
        """
        if name not in self._entries:
            self._load_plugins()
        if name not in self._entries:
            raise UnknownName(self._kind, name, self._entries, field=self._kind)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            self._load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> tuple[str, ...]:
        """Return every known name, sorted, plug-ins included."""
        self._load_plugins()
        return tuple(sorted(self._entries))

    def _load_plugins(self) -> None:
        """Add what entry points offer, once; built-in names win."""
        if self._plugins_loaded or self._group is None:
            return
        self._plugins_loaded = True
        for entry in metadata.entry_points(group=self._group):
            if entry.name not in self._entries:
                self._entries[entry.name] = entry.load()
