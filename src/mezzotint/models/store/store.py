"""Store: a name becomes a loaded model.

Names come from three places, the later hiding the earlier: cards that come with the
program (``plate``, ``plate-quick``, ``plate-gan``), cards under ``HOME/models``, and those
registered while running. ``name@version`` means one version; the bare name means
the default one. Paths and Hub ids are names too where that is allowed.

Loaded models stay in memory under a bound of bytes; see
:mod:`mezzotint.models.store.residency`.
"""

import contextlib
import re
import secrets
import shutil
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mezzotint.errors import InvalidRequest, ModelNotAllowed, UnknownName, WeightsError
from mezzotint.files import expanded, is_there, write_atomically
from mezzotint.models.cards import Card, describe_spec, write_card
from mezzotint.models.config import ModelsConfig, PlacementConfig
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.identify import identify
from mezzotint.models.reading import reading
from mezzotint.models.spec import ModelSpec
from mezzotint.models.store import hub
from mezzotint.models.store.combining import combined_entry
from mezzotint.models.store.entries import (
    ModelEntry,
    builtin_entries,
    describe_handler,
    handler_refusal,
    is_name,
    name_in_memory,
    only_file,
    read_text,
    stored_entries,
)
from mezzotint.models.store.known import Facts, recall_spec, remember_spec, spec_key
from mezzotint.models.store.residency import Residency
from mezzotint.models.store.shipped import shipped_spec

if TYPE_CHECKING:
    from mezzotint.models.base import Model

__all__ = ["ModelStore"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[0-9a-f]{7,40}|@[\w.-]+)?")
_LOOK_AGAIN_S = 0.2
"""How long what was read of the folder of models holds; another program may add to it."""


class ModelStore:
    """The models of one installation; safe to use from any thread.

    Args:
        config: Where models are and what is allowed.

    ``residency`` knows which are in memory.
    """

    def __init__(self, config: ModelsConfig | None = None) -> None:
        self.config = config or ModelsConfig()
        self._registered: dict[tuple[str, str], ModelEntry] = {}
        self._defaults: dict[str, str] = {}
        self._hidden: set[tuple[str, str]] = set()
        self.residency = Residency(self.config.max_bytes)
        self._lock = threading.RLock()
        self._listed: dict[str, tuple[ModelEntry, ...]] = {}
        self._listed_until_s = 0.0
        DIGESTS.keep_in(self.config.home_path / "cache" / "digests.json")
        self._facts = Facts(self.config.home_path / "cache" / "specs.json")

    # Names

    def entries(self) -> tuple[ModelEntry, ...]:
        """Return every version of every model, sorted by name and version."""
        return tuple(entry for versions in self._list().values() for entry in versions)

    def names(self) -> tuple[str, ...]:
        """Return the names of all models, sorted, without versions."""
        return tuple(self._list())

    def entry(self, name: str) -> ModelEntry:
        """Find a model by name, ``name@version``, path or Hub id.

        Raises:
            UnknownName: If there is none; names the nearest.
            ModelNotAllowed: If it is a path and paths are not allowed here.
            ModelError: If the path holds no model.
        """
        bare, _, version = name.partition("@")
        entries = self._list().get(bare, ())
        if entries:
            wanted = [e for e in entries if (e.version == version if version else e.is_default)]
            if wanted:
                return wanted[0]
            versions = [e.version for e in entries]
            raise UnknownName(f"version of model {bare}", version, versions, field="model")
        return self._entry_of_path(name)

    def _entry_of_path(self, name: str) -> ModelEntry:
        """Take a name for a path, or a Hub id, if it looks like one."""
        path = expanded(name)
        looks_like_path = path.is_absolute() or name.startswith((".", "~")) or "\\" in name
        if not (looks_like_path or is_there(path) or "/" in name):
            raise UnknownName("model", name, self.names(), field="model")
        if not self.config.allow_paths:
            raise ModelNotAllowed(
                f"model {name[:200]!r} is a path or Hub id, and this server takes names from its "
                f"store only: {', '.join(self.names())}"
            )
        if is_there(path):
            return self._entry_at(path, name, "model")
        if not looks_like_path and _HUB_ID.fullmatch(name):
            repo, _, revision = name.partition("@")
            card = Card(name=name, repo=repo, revision=revision)
            return ModelEntry(name=name, version="", card=card, path=Path())
        raise UnknownName("model", name, self.names(), field="model")

    def _entry_at(self, path: Path, name: str, field: str) -> ModelEntry:
        """Describe what lies at a path; an archive is unpacked."""
        with reading(f"model {name}", field):
            path = (hub.cached_snapshot(path) or path).resolve()
            return self._unpacked(
                ModelEntry(name=name, version="", card=Card(name=name), path=path)
            )

    def _unpacked(self, entry: ModelEntry) -> ModelEntry:
        """Unpack an archive into the cache and point the entry there."""
        layout = identify(entry.path)
        if layout not in ("archive", "mar"):
            return replace(entry, layout=layout)
        from mezzotint.models.store.unpacking import unpack_cached

        if layout == "mar" and self.config.allow_handler_code:
            from mezzotint.models.formats.torchserve_archive import card_of, inspect_mar

            info = inspect_mar(entry.path)
            if info.has_code and info.digest in self.config.allowed_handlers:
                card = replace(card_of(info), name=entry.name)
                return replace(entry, card=card, layout="handler", digest=info.digest)

        found = unpack_cached(entry.path, self.config.home_path / "cache" / "archives")
        card = replace(found.card, name=entry.name)
        return replace(entry, card=card, path=found.path, layout=found.layout, digest=found.digest)

    def _list(self) -> Mapping[str, tuple[ModelEntry, ...]]:
        """Return every version of every name, sorted; looked up again now and then."""
        with self._lock:
            now = time.monotonic()
            if now >= self._listed_until_s:
                found = {k: entry for k, entry in self._all().items() if k not in self._hidden}
                listed: dict[str, tuple[ModelEntry, ...]] = {}
                for (name, version), entry in sorted(found.items()):
                    is_default = version == self._default_version(name, found)
                    shown = replace(entry, is_default=is_default)
                    listed[name] = (*listed.get(name, ()), shown)
                self._forget_changed(listed)
                self._listed, self._listed_until_s = listed, now + _LOOK_AGAIN_S
            return self._listed

    def _forget_changed(self, listed: Mapping[str, tuple[ModelEntry, ...]]) -> None:
        """Drop from memory what was removed, replaced or made the default by another program."""
        shown = {entry.full_name: entry for entries in listed.values() for entry in entries}
        for entry in (entry for entries in self._listed.values() for entry in entries):
            if shown.get(entry.full_name) != entry:
                self.residency.drop(entry.full_name)

    def look_again(self) -> None:
        """Forget what was listed: it has been changed."""
        self._listed_until_s = 0.0

    def _all(self) -> dict[tuple[str, str], ModelEntry]:
        """Collect the three places, later ones hiding earlier ones."""
        found: dict[tuple[str, str], ModelEntry] = {}
        for entry in builtin_entries():
            found[entry.name, entry.version] = entry
        for entry in stored_entries(self.config.models_path):
            found[entry.name, entry.version] = entry
        return {**found, **self._registered}

    def _default_version(self, name: str, found: dict[tuple[str, str], ModelEntry]) -> str:
        """Return the version that the bare name means: the chosen one, or the first."""
        versions = [version for known, version in sorted(found) if known == name]
        chosen = self._defaults.get(name) or read_text(
            self.config.models_path / name / "default.txt"
        )
        return chosen if chosen in versions else versions[0]

    # Changes

    def add(
        self,
        name: str,
        source: str | Path,
        *,
        version: str | None = None,
        keep: bool = True,
        placement: Mapping[str, Any] | None = None,
        base: str | None = None,
    ) -> ModelEntry:
        """Add a model from a path, an archive or a Hub id.

        A folder or file stays where it is; an archive is unpacked into the store; a
        Hub model is fetched and its commit written down.

        Args:
            name: Name to give it: letters, digits, ``.``, ``_`` and ``-``.
            source: Path, or Hub id with an optional ``@revision``.
            version: Version; the archive's own, or ``"1.0"``.
            keep: Whether it is there after a restart.
            placement: Its own placement options, beside those of its card.
            base: Model whose other parts a denoiser's file draws with; None for whole models.

        Raises:
            InvalidRequest: If the name is no name, name and version are taken, the
                placement cannot be, or the base is no diffusers folder.
            UnknownName: If there is nothing at ``source``.
            ModelError: If it is not a model, is unsafe, or is broken.
        """
        for kind, text in (("name", name), ("version", version or "1.0")):
            if not is_name(text):
                raise InvalidRequest(
                    f"{kind} must be letters, digits, '.', '_' or '-', 1 to 100 of them, "
                    f"got {text!r}",
                    field=kind,
                )
        text = str(source)
        entry = self._combined(name, text, base) if base else self._inspect_source(name, text)
        card = replace(entry.card, placement={**entry.card.placement, **(placement or {})})
        entry = replace(entry, version=version or card.version, card=card)
        with self._lock:
            self.look_again()
            taken = {(e.name, e.version) for e in self.entries()}
            if (name, entry.version) in taken:
                raise InvalidRequest(
                    f"model {name} version {entry.version} exists already; remove it first or "
                    "give another version",
                    field="name",
                    value=f"{name}@{entry.version}",
                )
            self._hidden.discard((name, entry.version))
            try:
                if keep:
                    entry = self._keep(entry)
                else:
                    self._registered[name, entry.version] = entry
            finally:
                self.look_again()
        return entry

    def import_checkpoint(
        self, name: str, path: str | Path, *, version: str | None = None, **config: Any
    ) -> ModelEntry:
        """Convert a foreign GAN checkpoint, a pickle, and add the result to the store.

        Args:
            name: Name to give it.
            path: A DCGAN's or perceptron's checkpoint.
            version: Version; ``"1.0"`` if None.
            config: Fields of :class:`~mezzotint.models.families.gan.GanConfig` that weights
                cannot tell (``licence``, ``description``, ...).

        Raises:
            InvalidRequest: If the name is no name, or name and version are taken.
            WeightsError: If the file is unsafe or holds no generator that we know.
        """
        from mezzotint.models.formats.checkpoint_scan import import_gan

        cache = self.config.home_path / "cache" / "archives"
        cache.mkdir(parents=True, exist_ok=True)
        folder = cache / f"checkpoint-{secrets.token_hex(8)}"
        try:
            import_gan(Path(path), folder, **config)
            return self.add(name, folder, version=version)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _inspect_source(self, name: str, source: str) -> ModelEntry:
        """Find out what a source is, and check it as far as can be without loading."""
        path = expanded(source)
        card = Card(name=name)
        if is_there(path):
            entry = self._entry_at(path, name, "source")
            return replace(entry, card=replace(entry.card, name=name))
        if _HUB_ID.fullmatch(source) and not source.startswith("."):
            repo, _, revision = source.partition("@")
            known = hub.known_card(repo) or card
            path, commit = self._fetch(replace(known, repo=repo, revision=revision))
            card = replace(known, name=name, repo=repo, revision=commit)
            return ModelEntry(name=name, version="", card=card, path=path, layout=identify(path))
        raise UnknownName("model source", source, self.names(), field="source")

    def _combined(self, name: str, denoiser: str, base: str) -> ModelEntry:
        """Put a denoiser's file among the other parts of a model."""
        found, cache = self.entry(base), self.config.home_path / "cache" / "archives"
        path = self._fetch(found.card)[0] if found.card.repo else found.path
        return combined_entry(name, expanded(denoiser), replace(found, path=path), cache)

    def _fetch(self, card: Card) -> tuple[Path, str]:
        """Return where a Hub model is on this machine, and its commit."""
        allow = self.config.allow_downloads
        return hub.fetch(card.repo, card.revision or None, variant=card.variant, allow=allow)

    def _keep(self, entry: ModelEntry) -> ModelEntry:
        """Write an entry's card, and move its files in if they are the cache's."""
        folder = self.config.models_path / entry.name / entry.version
        cache = self.config.home_path / "cache" / "archives"
        path = entry.path
        folder.mkdir(parents=True, exist_ok=True)
        is_unpacked = path.is_relative_to(cache)
        if is_unpacked:
            shutil.rmtree(folder / "files", ignore_errors=True)
            shutil.move(path.parent if path.is_file() else path, folder / "files")
            path = only_file(folder / "files")
        if entry.layout == "handler":
            write_atomically(folder / "handler.txt", entry.digest.encode())
        is_ours = is_unpacked or bool(entry.card.repo)
        card = replace(entry.card, version=entry.version, path="" if is_ours else str(entry.path))
        write_card(folder / "card.toml", card)
        return replace(entry, path=path, card=card, is_owned=is_unpacked)

    def remove(self, name: str, version: str | None = None, *, delete: bool = True) -> None:
        """Remove one version of a model (the default one if None).

        Files that lie outside the store stay; so do built-in models, which are only
        hidden while this program runs.

        Args:
            name: Name, or ``name@version``.
            version: Version, if ``name`` has none.
            delete: Whether files inside the store are deleted too.

        Raises:
            UnknownName: If there is no such model or version.
        """
        with self._lock:
            self.look_again()
            bare, _, named = name.partition("@")
            if bare not in self.names():
                raise UnknownName("model", bare, self.names(), field="model")
            version = version or named
            entry = self.entry(f"{bare}@{version}" if version else bare)
            self.residency.drop(entry.full_name)
            folder = self.config.models_path / entry.name / entry.version
            if self._registered.pop((entry.name, entry.version), None) is None:
                if delete and folder.is_dir():
                    shutil.rmtree(folder)
                    with contextlib.suppress(OSError):  # other versions live beside it
                        (folder.parent / "default.txt").unlink(missing_ok=True)
                        folder.parent.rmdir()
                else:
                    self._hidden.add((entry.name, entry.version))
            self.look_again()

    def set_default(self, name: str, version: str, *, keep: bool = True) -> None:
        """Make the bare ``name`` mean this version.

        Raises:
            UnknownName: If there is no such model or version.
        """
        with self._lock:
            self.look_again()
            entry, before = self.entry(f"{name}@{version}"), self.entry(name)
            self._defaults[name] = entry.version
            self.look_again()
            for other in {before.full_name, entry.full_name} if before != entry else ():
                self.residency.drop(other)  # a spec's name says which version is the default
            if keep:
                path = self.config.models_path / name / "default.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, entry.version.encode())

    # Loading

    def load(self, name: str, placement: PlacementConfig | None = None) -> "Model":
        """Return a model, loading it if it is not in memory.

        Raises:
            UnknownName: If nothing is called that.
            ModelNotAllowed: If it may not be used here.
            ModelError: If its files are missing, corrupt or unsafe.
        """
        with self.use(name, placement) as model:
            return model

    @contextlib.contextmanager
    def use(self, name: str, placement: PlacementConfig | None = None) -> "Generator[Model]":
        """Give a model that stays in memory for the length of the block.

        Raises:
            MezzotintError: As :meth:`load`.
        """
        entry = self.entry(name)
        placement = placement or self.config.placement
        with self.residency.use(
            (name_in_memory(entry), placement),
            lambda: self._load(entry, placement),
            source=entry,
        ) as model:
            yield model

    def _load(self, entry: ModelEntry, placement: PlacementConfig) -> "Model":
        """Load an entry's files and let its card override what they say."""
        if entry.layout == "handler":
            raise self._refuse_handler(entry)
        card, path, shown = entry.card, entry.path, name_in_memory(entry)
        with reading(f"model {shown}", "model"):
            if card.repo:
                path, _ = self._fetch(card)
            elif not path.exists():
                raise WeightsError(f"model {shown}: its files are missing, expected at {path}")
            from mezzotint.models.store.loading import load_with_card

            name = entry.name if entry.is_default else entry.full_name
            return load_with_card(path, card, name=name, placement=placement)

    def _refuse_handler(self, entry: ModelEntry) -> ModelNotAllowed:
        """Say why an archive of handler code is no model here."""
        return handler_refusal(entry, is_allowed=self.may_run(entry))

    def may_run(self, entry: ModelEntry) -> bool:
        """Tell whether an entry is handler code that the operator has allowed."""
        is_allowed = self.config.allow_handler_code and entry.digest in self.config.allowed_handlers
        return entry.layout == "handler" and is_allowed

    def handler(self, name: str) -> ModelEntry:
        """Find an archive of handler code that may run.

        Raises:
            UnknownName: If nothing is called that.
            ModelNotAllowed: If it is no handler, or may not run here.
        """
        entry = self.entry(name)
        if entry.layout != "handler":
            raise ModelNotAllowed(f"model {entry.name} is no handler code")
        if not self.may_run(entry):
            raise self._refuse_handler(entry)
        return entry

    def spec(self, name: str) -> ModelSpec:
        """Return a model's spec; weights are read only when a network is first called."""
        entry = self.entry(name)
        known = self.residency.find((name_in_memory(entry), self.config.placement), entry)
        if known is not None:
            return known.spec
        key = spec_key(entry, self.config.placement)
        spec = self.load(name).spec
        if key == spec_key(entry, self.config.placement):
            remember_spec(self._facts, key, spec)
        return spec

    def known_spec(self, name: str) -> ModelSpec | None:
        """Return what the package or an earlier process knows of a model, None if it may be old.

        Raises:
            MezzotintError: As :meth:`entry`.
        """
        entry, placement = self.entry(name), self.config.placement
        shipped = shipped_spec(entry, placement)
        return shipped or recall_spec(self._facts, spec_key(entry, placement))

    def is_loaded(self, name: str) -> bool:
        """Tell whether a model is in memory."""
        return self.residency.has(name_in_memory(self.entry(name)))

    # For people

    def describe(self, name: str) -> dict[str, Any]:
        """Return everything about a model as plain data, for lists and ``models show``.

        Raises:
            MezzotintError: As :meth:`load`.
        """
        entry = self.entry(name)
        basics: dict[str, Any] = {
            "name": entry.name,
            "version": entry.version,
            "default": entry.is_default,
            "builtin": entry.is_builtin,
            "path": str(entry.path),
            "description": entry.card.description,
            "predictions": entry.card.predictions or "picture",
            "ready": self.is_loaded(name),
        }
        if entry.layout == "handler":
            return {
                **basics,
                "ready": self.may_run(entry),
                **describe_handler(entry),
                "limits": [str(self._refuse_handler(entry))],
            }
        spec = (None if basics["ready"] else self.known_spec(name)) or self.spec(name)
        return {**basics, **describe_spec(spec), "path": str(entry.path)}
