"""Shared models: files of models in the place that machines share, by their sha256.

``mezzotint models share NAME`` copies a model to ``models.shared_url``. A machine that is asked
for a model at its start and lacks it takes it from there into its own store, where it stays.
Files lie under their digest, so that versions share what is equal, and every file is held
against it when it is taken. The list of a model's files is small and lies under its name.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import tomllib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mezzotint.errors import InvalidRequest, ModelError, WeightsError, WorkFailed
from mezzotint.files import digest_file, exclusive
from mezzotint.models.cards import Card, card_from_plain, card_to_toml, write_card
from mezzotint.models.config import ModelsConfig
from mezzotint.models.digests import DIGESTS
from mezzotint.models.store import hub
from mezzotint.models.store.entries import ModelEntry, is_name
from mezzotint.models.store.store import ModelStore
from mezzotint.observe import log
from mezzotint.service.buckets import open_objects
from mezzotint.service.objects import FolderObjects, ObjectStore

__all__ = ["SharedModels", "open_shared_models"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_FILES = 10_000


@dataclass(frozen=True, slots=True)
class _Listed:
    """A model in the place: what is declared of it, and its files.

    Args:
        card: Without a path.
        files: sha256 of each by its path below the model's folder.
        single: Whether the model is the one file, and not a folder with it.
    """

    card: Card
    files: Mapping[str, str]
    single: bool


def open_shared_models(config: ModelsConfig) -> "SharedModels | None":
    """Return the models at ``models.shared_url``, None where that is not set.

    Raises:
        InvalidRequest: If the place is neither a folder nor a bucket.
    """
    if not config.shared_url:
        return None
    return SharedModels(open_objects(config.shared_url, "models.shared_url"), config)


class SharedModels:
    """Models in the place that machines share.

    Args:
        objects: The place.
        config: Where this machine's models are.
    """

    def __init__(self, objects: ObjectStore, config: ModelsConfig) -> None:
        self._objects = objects
        self._config = config

    def give(self, store: ModelStore, name: str, *, force: bool = False) -> tuple[ModelEntry, int]:
        """Copy a model of this machine to the place.

        Args:
            store: Of this machine.
            name: Name, or ``name@version``.
            force: Whether files are copied that are there already: one of a bucket may be
                damaged, and reading it back costs what writing it does.

        Returns:
            What was copied, and how many bytes that took.

        Raises:
            UnknownName: If there is no such model.
            InvalidRequest: If it need not, or must not, be shared; or another one has its name
                and version there.
            WorkFailed: If the place cannot be reached, or has no room.
        """
        entry = store.entry(name)
        if entry.is_builtin:
            raise InvalidRequest(
                f"{entry.name} comes with the program and is on every machine", field="NAME"
            )
        if entry.layout == "handler":
            raise InvalidRequest(
                f"{entry.name} is handler code, which each machine's operator allows and adds",
                field="NAME",
            )
        if not entry.version:
            raise InvalidRequest(
                f"{name} is a path: give it a name first with `mezzotint models add`", field="NAME"
            )
        root = entry.path
        if entry.card.repo:
            root, _ = hub.fetch(entry.card.repo, entry.card.revision or None,
                                variant=entry.card.variant,
                                allow=self._config.allow_downloads)  # fmt: skip
        found = {root.name: root} if root.is_file() else _files_below(root)
        if not found:
            raise WeightsError(
                f"model {entry.full_name}: its files are missing, expected at {root}"
            )
        files = {short: DIGESTS.digest(path) for short, path in found.items()}
        card = replace(entry.card, version=entry.version, path="", repo="", revision="")
        listed = _Listed(card, files, root.is_file())
        with _telling():
            there = self._listed(entry.name, entry.version)
            if there is not None and dict(there.files) != files:
                raise InvalidRequest(
                    f"another {entry.full_name} is shared already; give this one another version",
                    field="NAME",
                )
            known = set(self._objects.names("models/files/"))
            copied = 0
            for short, path in found.items():
                where = f"models/files/{files[short]}"
                if force or where not in known or self._is_damaged(where, files[short]):
                    self._objects.put_file(where, path)
                    copied += path.stat().st_size
                    known.add(where)
            plain = {"card": card_to_toml(card), "files": files, "single": listed.single}
            data = json.dumps(plain, ensure_ascii=False, indent=1).encode()
            self._objects.put(_name_of(entry.name, entry.version), data)
        return entry, copied

    def _is_damaged(self, where: str, digest: str) -> bool:
        """Whether a file of a folder is not what it was; a bucket is not read back."""
        return isinstance(self._objects, FolderObjects) and not self._objects.holds(where, digest)

    def take(self, name: str) -> bool:
        """Copy a model from the place into this machine's store; False if it is not there.

        Args:
            name: Name, or ``name@version``; without one the first version by its text, which
                is what the bare name means in a store.

        Raises:
            ModelError: If its list or a file of it is not what it should be; nothing is kept.
            WorkFailed: If the place cannot be reached, or the disk is full.
        """
        bare, _, version = name.partition("@")
        if not is_name(bare) or (version and not is_name(version)):
            return False
        with _telling():
            version = version or self._first_version(bare)
            listed = self._listed(bare, version) if version else None
            if listed is None:
                return False
            folder = self._config.models_path / bare / version
            folder.mkdir(parents=True, exist_ok=True)
            with exclusive(folder / ".taking"):
                if not (folder / "card.toml").is_file():  # no other process was first
                    self._fill(folder, listed)
        log.info("model.taken", model=f"{bare}@{version}", files=len(listed.files))
        return True

    def _fill(self, folder: Path, listed: _Listed) -> None:
        """Copy a model's files into its folder in the store; a card is its last file."""
        for left in folder.glob(".*.partial"):  # of a process that was killed
            shutil.rmtree(left)
        partial = folder / f".{secrets.token_hex(6)}.partial"
        try:
            for short, digest in listed.files.items():
                self._take_file(partial / short, digest, f"{listed.card.name}@{folder.name}")
            shutil.rmtree(folder / "files", ignore_errors=True)  # whose card was never written
            os.rename(partial, folder / "files")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        only = next(iter(listed.files)) if listed.single else ""
        path = f"files/{only}" if only and not only.endswith(".safetensors") else ""
        write_card(folder / "card.toml", replace(listed.card, path=path))

    def _take_file(self, path: Path, digest: str, model: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_there = self._objects.get_file(f"models/files/{digest}", path)
        if not is_there or digest_file(path) != digest:
            state = "damaged" if is_there else "missing"
            raise WeightsError(
                f"model {model}: the file {path.name} is {state} in models.shared_url (sha256 "
                f"{digest[:12]}): share it again with `mezzotint models share --force`"
            )

    def _first_version(self, name: str) -> str:
        """Return the version that the bare name means, "" if there is none."""
        found = self._objects.names(f"models/named/{name}/")
        return min((PurePosixPath(one).stem for one in found), default="")

    def _listed(self, name: str, version: str) -> _Listed | None:
        """Return what the place has of a version.

        Raises:
            ModelError: If the list is not what it should be.
        """
        data = self._objects.get(_name_of(name, version))
        if data is None:
            return None
        where = f"of {name}@{version} in models.shared_url"
        try:
            plain: dict[str, Any] = json.loads(data)
            files = {str(short): str(digest) for short, digest in plain["files"].items()}
            given, single = tomllib.loads(plain["card"]), bool(plain["single"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"the list {where} is broken: {error}") from None
        if not 0 < len(files) <= _MOST_FILES or (single and len(files) != 1):
            raise ModelError(f"the list {where} has {len(files)} files")
        for short, digest in files.items():
            if not _is_below(short) or not _SHA256.fullmatch(digest):
                raise ModelError(f"the list {where} names {short[:80]!r}, no file of a model")
        card = card_from_plain(given, source=where)
        if (card.name, card.version, card.path) != (name, version, ""):
            raise ModelError(f"the card {where} is another model's")
        return _Listed(card, files, single)


def _name_of(name: str, version: str) -> str:
    return f"models/named/{name}/{version}.json"


def _files_below(root: Path) -> dict[str, Path]:
    """Return the files of a model's folder by their paths in it, hidden ones left out."""
    found = {path.relative_to(root): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {
        short.as_posix(): path
        for short, path in found.items()
        if not any(part.startswith(".") for part in short.parts)
    }


def _is_below(short: str) -> bool:
    """Whether a path stays below the folder that it is put into, on any system."""
    parts = PurePosixPath(short).parts
    plain = not any(part.startswith(".") or ":" in part for part in parts)
    return bool(parts) and plain and not short.startswith("/") and "\\" not in short


@contextlib.contextmanager
def _telling() -> Generator[None]:
    """Say in words of ours that the place, or the disk, does not answer."""
    try:
        yield
    except OSError as error:
        told = error.strerror or str(error)
        raise WorkFailed(f"models.shared_url cannot be used: {told}") from None
