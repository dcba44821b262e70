"""Registry: a named mapping whose error lists what exists.

One registry per family of things, written in the file that owns the family.
Plug-ins add names through entry points, which are looked up on the first miss;
nothing registers itself by being imported.
"""

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import Any, Generic, TypeVar

from mezzotint.errors import UnknownName, WorkFailed

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """A read-only mapping from names to things, extended by entry points.

    Args:
        kind: What the things are, in the singular, for the error message.
        entries: The built-in things by name.
        group: Entry-point group that plug-ins use, e.g. ``"mezzotint.gates"``.
        read: Makes an entry of what an entry point loads; None takes it as it is.

    Example:
        >>> schedulers = Registry("scheduler", {"euler": 1})
        >>> schedulers["euler"]
        1
    """

    def __init__(
        self,
        kind: str,
        entries: Mapping[str, T],
        *,
        group: str | None = None,
        read: Callable[[Any], T] | None = None,
    ) -> None:
        self._kind = kind
        self._entries = dict(entries)
        self._broken: dict[str, Exception] = {}
        self._group = group
        self._read = read
        self.builtin: tuple[str, ...] = tuple(sorted(entries))
        self._plugins_loaded = group is None

    def __getitem__(self, name: str) -> T:
        """Return the thing called ``name``.

        Raises:
            UnknownName: If neither the built-in entries nor a plug-in has it.
            WorkFailed: If a plug-in has it and cannot be loaded.
        """
        if name not in self._entries:
            self._load_plugins()
        if name in self._broken:
            error = self._broken[name]
            raise WorkFailed(
                f"{self._kind} {name} comes from a plug-in that cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
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

    def get(self, name: str) -> T | None:
        """Return the thing called ``name``, or None if there is none.

        Raises:
            WorkFailed: If a plug-in has it and cannot be loaded.
        """
        try:
            return self[name]
        except UnknownName:
            return None

    def names(self) -> tuple[str, ...]:
        """Return every known name, sorted, plug-ins included."""
        self._load_plugins()
        return tuple(sorted(self._entries))

    def _load_plugins(self) -> None:
        """Add what entry points offer, once; built-in names win, what is broken is kept apart."""
        if self._plugins_loaded or self._group is None:
            return
        self._plugins_loaded = True
        for entry in metadata.entry_points(group=self._group):
            if entry.name in self._entries:
                continue
            try:
                loaded = entry.load()
                self._entries[entry.name] = self._read(loaded) if self._read else loaded
            except Exception as error:  # a plug-in's own code: told to whoever asks for its name
                self._broken[entry.name] = error
