"""Own adapters: LoRAs that clients of a server bring along, each for the client who did.

They lie among those of the installation, under names that are unique; a note beside them
says whose each is. One without a note is everybody's. Torch-free; what each method answers
and refuses says the port, :class:`~mezzotint.service.base.AdapterKeeper`.
"""

import contextlib
import filecmp
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from mezzotint.errors import InvalidRequest, Refused, UnknownName
from mezzotint.models.reading import refuse_special
from mezzotint.models.store.hub import fetch_file
from mezzotint.request import GenerationRequest
from mezzotint.service.provision.adapter_descriptions import describe_adapter
from mezzotint.service.provision.adapter_files import AdapterFiles, KeptAdapter, shipped
from mezzotint.techniques.tags import named_by

__all__ = ["OwnAdapters"]

KIND = "lora"
HELD_S = 60.0
"""Seconds for which a name that was given up is no other key's: far longer than a request that
was let pass by that name needs to be planned, which pins the file's bytes."""


class OwnAdapters:
    """The LoRAs of one home, and whose they are; safe to use from any thread.

    Args:
        home: Folder of the installation, which one server has.
        allow_downloads: Whether LoRAs may be fetched from the Hub.
    """

    def __init__(self, home: Path, *, allow_downloads: bool = True) -> None:
        self._allow_downloads = allow_downloads
        self.files = AdapterFiles(home, allow_paths=False)
        self._lock = threading.Lock()
        self._given_up: dict[str, tuple[str, float]] = {}  # name -> whose it was, since when

    def sweep(self) -> None:
        """Remove unfinished uploads of a server that was killed."""
        self.files.sweep(KIND)

    def hidden_from(self, client: str, *, sees_all: bool) -> frozenset[str]:
        """Return the names of others."""
        if sees_all:
            return frozenset()
        kept = self._kept()
        return frozenset(kept.keys() - _seen(kept, client, sees_all=False).keys())

    def check(self, request: GenerationRequest, client: str, *, sees_all: bool) -> None:
        """Refuse a LoRA of another client, by its name or by a path that leads to its file."""
        named = [n for n in named_by(request) if n[1] == KIND or _may_lead_to_a_file(n[2])]
        if sees_all or not named:
            return
        kept = self._kept()
        seen = _seen(kept, client, sees_all=False)
        others = [one.file for name, one in kept.items() if name not in seen]
        for field, kind, name in named:
            if kind == KIND and name in kept:
                is_anothers = name not in seen
            else:
                is_anothers = _is_among(self.files.at(KIND, name), others)
            if is_anothers:
                known = sorted(seen) if kind == KIND else ()
                raise UnknownName(kind.replace("_", " "), name, known, field=field)

    def listed(self, client: str, *, sees_all: bool) -> list[dict[str, Any]]:
        """Describe every LoRA that a client may wear."""
        seen = _seen(self._kept(), client, sees_all=sees_all)
        told = {
            name: _told(name, one.file, one.owner)
            for name, one in seen.items()
            if one.owner is not None
        }
        now = self._kept()  # what was exchanged while it was described is left out
        told = {name: one for name, one in told.items() if now.get(name) == seen[name]}
        told |= {n: _told(n, path, "") for n, path in shipped(KIND).items() if n not in now}
        return [told[name] for name in sorted(told)]

    def show(self, name: str, client: str, *, sees_all: bool) -> dict[str, Any]:
        """Describe one LoRA."""
        if name in (packed := shipped(KIND)) and name not in self._kept():
            return _told(name, packed[name], "")
        one = self._find(name, client, sees_all=sees_all)
        if one.owner is not None:
            told = _told(name, one.file, one.owner)
            if self._kept().get(name) == one:  # not exchanged while it was described
                return told
        raise UnknownName(KIND, name, (), field="name")

    def check_name(self, name: str) -> None:
        """Refuse what cannot be a name."""
        self.files.check_name(name)

    def check_free(self, name: str, owner: str, *, most: int) -> None:
        """Refuse an upload that could not be taken, before any of it comes."""
        kept = self._kept()
        if name in kept or name in shipped(KIND):
            raise InvalidRequest(f"LoRA {name} exists already; give another name", field="name")
        whose, since = self._given_up.get(name, (owner, 0.0))
        if owner and whose != owner and time.monotonic() < since + HELD_S:
            raise InvalidRequest(
                f"LoRA {name} was dropped less than {HELD_S:.0f} s ago; give another name, or wait",
                field="name",
            )
        if owner and most and sum(one.owner == owner for one in kept.values()) >= most:
            raise Refused(f"this key has {most} LoRAs, as many as it may; drop one first")

    def incoming(self) -> contextlib.AbstractContextManager[Path]:
        """Give the path of a file to write an upload to; what is left there is removed."""
        return self.files.incoming(KIND)

    def take(self, name: str, upload: Path, owner: str, *, most: int) -> dict[str, Any]:
        """Make an upload a LoRA."""
        self.files.check_name(name)
        told = _told(name, upload, owner)
        told["path"] = f"{name}{upload.suffix}"
        if not told["error"]:
            try:
                orjson.dumps(told)  # what cannot be told of it must not be kept
            except orjson.JSONEncodeError as error:
                told["error"] = str(error)
        if told["error"]:
            raise InvalidRequest(
                f"the body must be a LoRA as a safetensors file: {told['error']}", field="body"
            )
        with self._lock:
            self.check_free(name, owner, most=most)
            self.files.put(KIND, name, upload, owner=owner)
        return told

    def bring(self, name: str, source: str, *, replace: bool = False) -> dict[str, Any]:
        """Copy a LoRA from this machine or the Hub, for everybody."""
        self._check_place(name, replace=replace)
        file = self.files.at(KIND, source) or fetch_file(source, allow=self._allow_downloads)
        refuse_special(file)
        told = _told(name, file, "")
        if told["error"]:
            raise InvalidRequest(f"{source} is no LoRA: {told['error']}", field="source")
        with self._lock:
            self._check_place(name, replace=replace)
            kept = self.files.add(KIND, name, file, replace=replace)
        return _told(name, kept, "")

    def is_same(self, name: str, source: str) -> bool:
        """Tell whether a name is that of a LoRA for everybody with the bytes at a path."""
        one, file = self._kept().get(name), self.files.at(KIND, source)
        if one is None or one.owner != "" or file is None:
            return False
        try:
            return filecmp.cmp(one.file, file, shallow=False)
        except OSError:  # gone meanwhile
            return False

    def _check_place(self, name: str, *, replace: bool) -> None:
        """Refuse a name that is taken, but by what may be replaced."""
        one = self._kept().get(name)
        if not (replace and one is not None and one.owner == ""):
            self.check_free(name, "", most=0)

    def drop(self, name: str, client: str, *, sees_all: bool) -> None:
        """Remove a LoRA."""
        with self._lock:
            if name in shipped(KIND) and name not in self._kept():
                raise Refused(f"LoRA {name} comes with the package and stays")
            one = self._find(name, client, sees_all=sees_all)
            if not sees_all and not one.owner:
                raise Refused(f"LoRA {name} is everybody's: a key that may manage drops it")
            now = time.monotonic()
            kept = {n: one for n, one in self._given_up.items() if now < one[1] + HELD_S}
            self._given_up = {**kept, name: (one.owner or "", now)}
            self.files.remove(KIND, name)

    def _kept(self) -> Mapping[str, KeptAdapter]:
        return self.files.kept(KIND)

    def _find(self, name: str, client: str, *, sees_all: bool) -> KeptAdapter:
        seen = _seen(self._kept(), client, sees_all=sees_all)
        if name not in seen:
            raise UnknownName(KIND, name, sorted(seen), field="name")
        return seen[name]


def _seen(
    kept: Mapping[str, KeptAdapter], client: str, *, sees_all: bool
) -> dict[str, KeptAdapter]:
    """Return what is there for a client; what nobody can be named for is for who sees all."""
    return {name: one for name, one in kept.items() if sees_all or one.owner in ("", client)}


def _may_lead_to_a_file(name: str) -> bool:
    """Whether a name of another kind can be the path of a LoRA."""
    return "/" in name or "\\" in name or name.lower().endswith(".safetensors")


def _is_among(path: Path | None, files: Iterable[Path]) -> bool:
    """Whether a path leads to one of some files: by links, in other case, or from elsewhere."""
    if path is None:
        return False
    for file in files:
        with contextlib.suppress(OSError):  # gone meanwhile
            if path.samefile(file):
                return True
    return False


def _told(name: str, path: Path, owner: str) -> dict[str, Any]:
    """Describe a LoRA without the place where it lies."""
    told = describe_adapter(KIND, name, path)
    error = str(told["error"]).replace(str(path), "the file")
    return {"kind": KIND, **told, "error": error, "path": path.name, "owner": owner}
