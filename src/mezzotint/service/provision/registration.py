"""Registration: which models there are, by which names.

Models come by ``--models`` at the start and by registration while running. Whoever
asks from outside gets what lies in the model store; a path or Hub id only where
paths are allowed. The operator, on the command line, may name any path.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest, MezzotintError, UnknownName
from mezzotint.files import expanded, is_there
from mezzotint.models.formats.identify import identify
from mezzotint.models.store.entries import ModelEntry
from mezzotint.observe import log
from mezzotint.service.provision.model_provider import ModelProvider
from mezzotint.service.provision.shared_models import SharedModels

__all__ = ["ModelRegistration", "own_name"]

_EVERYTHING = "all"


class ModelRegistration:
    """Gives models their names and takes them away.

    Args:
        provider: Gives models and their specs.
        model_store: Folder whose files can be registered by their names, "" for none.
        allow_paths: Whether a source from outside may be a path or Hub id.
        runs: Folder whose training runs can be registered by their paths, "" for none.
        shared: Models in the place that machines share, for those that this one lacks.
    """

    def __init__(
        self,
        provider: ModelProvider,
        *,
        model_store: str,
        allow_paths: bool,
        runs: str = "",
        shared: SharedModels | None = None,
    ) -> None:
        self._provider = provider
        self._shared = shared
        self._root = Path(model_store).expanduser().resolve() if model_store else None
        self._runs = Path(runs).expanduser().resolve() if runs else None
        self._allow_paths = allow_paths

    def name_wanted(self, wanted: Sequence[str]) -> list[str]:
        """Register what the operator asked for at the start.

        Args:
            wanted: ``name=path``; ``=path`` for the name that the archive or file has
                itself; ``all`` for everything in the model store; a file or folder in
                the model store, which then gets its own name; or a name, path or Hub
                id that needs no registration. A name that nothing here has is looked for in
                the place that machines share, and stays here once it was found.

        Returns:
            Names of the models that can be warmed up: handler code cannot.

        Raises:
            MezzotintError: If one cannot be had; of ``all``, those are skipped with a
                warning in the log.
        """
        names: dict[str, None] = {}
        for text in wanted:
            is_everything = text.lower() == _EVERYTHING and not self._is_known(text)
            found = self._add_everything() if is_everything else (self._add_wanted(text),)
            names |= dict.fromkeys(found)
        return [name for name in names if not self._is_code(name)]

    def _is_code(self, name: str) -> bool:
        """Tell whether a model is handler code; say so where it may not run."""
        if not self._provider.is_code(name):
            return False
        store = self._provider.store
        entry = store.entry(name)
        if not store.may_run(entry):
            log.warning("model.code_not_allowed", model=name, sha256=entry.digest)
        return True

    def register(
        self, source: str, name: str | None = None, version: str | None = None
    ) -> Mapping[str, Any]:
        """Add a model for as long as this process lives, and describe it.

        Args:
            source: What lies in the model store, or a path or Hub id where allowed.
            name: Its name; the archive's or file's own if None.
            version: Its version; the archive's own, or ``"1.0"``, if None.

        Raises:
            UnknownName: If there is nothing of that name that may be used.
            MezzotintError: If it is no model, or name and version are taken.
        """
        entry = self._add(name, self.find_source(source), version)
        return self._provider.store.describe(entry.full_name)

    def unregister(self, name: str, version: str | None = None) -> tuple[str, ...]:
        """Remove one version of a model (the default one if None); files stay.

        Returns:
            Digests of the handler code that is gone with it.

        Raises:
            UnknownName: If there is no such model or version.
        """
        store = self._provider.store
        gone = {entry.full_name: entry.digest for entry in store.entries()}
        store.remove(name, version, delete=False)
        for kept in store.entries():
            gone.pop(kept.full_name, None)
        return tuple(gone.values())

    def set_default(self, name: str, version: str) -> None:
        """Make the bare ``name`` mean this version.

        Raises:
            UnknownName: If there is no such model or version.
        """
        self._provider.store.set_default(name, version, keep=False)

    def find_source(self, source: str, *, is_operator: bool = False) -> str:
        """Return where a source is: in the model store, or as it is where that is allowed.

        What counts is where a path leads in the end, so neither ``..`` nor a link
        leaves the model store.

        Args:
            source: Name in the model store, path or Hub id.
            is_operator: Whether it comes from the command line, where paths are allowed.

        Raises:
            UnknownName: If the model store has nothing of that name and paths are not
                allowed; the same whether or not there is something at the path.
        """
        inside = self._inside(source)
        if inside is None and self._runs is not None:
            inside = _inside(self._runs, source)
        if inside is not None:
            return str(inside)
        if not (is_operator or self._allow_paths):
            known = sorted(path.name for path in self._listed())
            raise UnknownName("model source", source, known, field="url")
        if self._root is not None and is_there(self._root / source):
            return str(self._root / source)  # a link out of the store, and paths are allowed
        return source

    def _inside(self, source: str) -> Path | None:
        """Return a path that lies in the model store, links followed; None if it does not."""
        return None if self._root is None else _inside(self._root, source)

    def _listed(self) -> Iterator[Path]:
        """Yield what lies in the model store, sorted, hidden files left out."""
        if self._root is not None and self._root.is_dir():
            yield from sorted(p for p in self._root.iterdir() if not p.name.startswith("."))

    def _add_wanted(self, text: str) -> str:
        """Register one entry of the operator's, and return its name."""
        name, equals, path = text.partition("=")
        if equals and "/" not in name and "\\" not in name:  # else a path that has a =
            return self._short(self._add(name, self.find_source(path, is_operator=True)))
        if self._is_here(text):
            return text
        if self._inside(text) is None:
            is_path = is_there(expanded(text))
            if self._shared is not None and not is_path and self._shared.take(text):
                self._provider.store.look_again()
            return text
        return self._short(self._add(None, self.find_source(text, is_operator=True)))

    def _add_everything(self) -> list[str]:
        """Register everything in the model store; what cannot be had is skipped."""
        if self._root is None:
            raise InvalidRequest(
                "models: all means everything in the model store, and there is no model store",
                field="models",
            )
        names: list[str] = []
        for path in self._listed():
            added: ModelEntry | None = None
            try:
                added = self._add(None, self.find_source(path.name))
                if not self._provider.is_code(added.full_name):
                    self._provider.spec(added.full_name)  # a broken one is found out here
            except MezzotintError as error:
                log.warning("model.skipped", source=path.name, error=str(error))
                if added is not None:
                    self.unregister(added.full_name)
                continue
            names.append(self._short(added))
        return names

    def _add(self, name: str | None, source: str, version: str | None = None) -> ModelEntry:
        """Add a model to the store, under its own name if it is given none."""
        chosen = name or own_name(source)
        return self._provider.store.add(chosen, source, version=version, keep=False)

    def _short(self, entry: ModelEntry) -> str:
        """Return the bare name where it means this version."""
        is_default = self._provider.store.entry(entry.name).version == entry.version
        return entry.name if is_default else entry.full_name

    def _is_here(self, name: str) -> bool:
        """Whether the store has a model, in the version that is named."""
        is_version = "@" in name and self._is_known(name)
        versions = [entry.full_name for entry in self._provider.store.entries()]
        return name in versions if is_version else self._is_known(name)

    def _is_known(self, name: str) -> bool:
        return name.partition("@")[0] in self._provider.names()


def _inside(root: Path, source: str) -> Path | None:
    """Return where a source lies below a folder, links followed; None if it does not."""
    try:
        path = (root / source).resolve()
        is_inside = path.is_relative_to(root) and path != root and path.exists()
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, a circle of links
        return None
    return path if is_inside else None


def own_name(source: str) -> str:
    """Return the name that a model has itself: in its manifest, or its file or folder's.

    Args:
        source: Path or Hub id.

    Raises:
        UnknownName: If it is neither there nor a Hub id.
        ModelError: If it is an archive that cannot be read, or no model.
    """
    path = expanded(source)
    if not is_there(path):
        if "/" not in source:  # no path, and no Hub id either
            raise UnknownName("model source", source, (), field="url")
        return path.stem
    layout = identify(path)
    if layout == "mar":
        from mezzotint.models.formats.torchserve_archive import card_of, inspect_mar

        return card_of(inspect_mar(path)).name
    if layout == "archive":
        from mezzotint.models.formats.archive import inspect_archive

        return inspect_archive(path).name
    return path.stem if path.is_file() else path.name
