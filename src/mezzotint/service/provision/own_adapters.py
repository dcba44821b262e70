"""Own adapters: LoRAs that clients of a server bring along, each for the client who did.

They lie among those of the installation, under names that are unique; a note beside them
says whose each is. One without a note is everybody's. Torch-free; what each method answers
and refuses says the port, :class:`~mezzotint.service.base.AdapterKeeper`.
"""

import contextlib
import secrets
import threading
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from mezzotint.errors import InvalidRequest, Refused, UnknownName
from mezzotint.models.prompt_syntax import lora_tags
from mezzotint.request import GenerationRequest
from mezzotint.service.provision.adapter_descriptions import describe_adapter
from mezzotint.service.provision.adapter_files import AdapterFiles
from mezzotint.techniques.walking import names_of

__all__ = ["OwnAdapters"]

KIND = "lora"


class OwnAdapters:
    """The LoRAs of one home, and whose they are; safe to use from any thread.

    Args:
        home: Folder of the installation, which one server has.
    """

    def __init__(self, home: Path) -> None:
        self.files = AdapterFiles(home, allow_paths=False)
        self._lock = threading.Lock()

    def hidden_from(self, client: str, *, sees_all: bool) -> frozenset[str]:
        """Return the names of others."""
        if sees_all:
            return frozenset()
        owners = self.files.owners(KIND)
        return frozenset(name for name, owner in owners.items() if owner != client)

    def check(self, request: GenerationRequest, client: str, *, sees_all: bool) -> None:
        """Refuse a LoRA of another client."""
        worn = [(field, name) for field, kind, name in names_of(request) if kind == KIND]
        if request.prompt_dialect == "a1111":
            worn += [("prompt", tag.name) for tag in lora_tags(request.prompt)[1]]
        if not worn:
            return
        hidden = self.hidden_from(client, sees_all=sees_all)
        for field, name in worn:
            if name in hidden:
                raise self._unknown(name, hidden, field)

    def listed(self, client: str, *, sees_all: bool) -> list[dict[str, Any]]:
        """Describe every LoRA that a client may wear."""
        hidden = self.hidden_from(client, sees_all=sees_all)
        owners = self.files.owners(KIND)
        names = [name for name in self.files.names(KIND) if name not in hidden]
        return [self._describe(name, owners.get(name, "")) for name in names]

    def show(self, name: str, client: str, *, sees_all: bool) -> dict[str, Any]:
        """Describe one LoRA."""
        self._find(name, client, sees_all=sees_all)
        return self._describe(name, self.files.owners(KIND).get(name, ""))

    def check_name(self, name: str) -> None:
        """Refuse what cannot be a name."""
        self.files.check_name(name)

    def count(self, client: str) -> int:
        """Count the LoRAs of a client's own."""
        return sum(owner == client for owner in self.files.owners(KIND).values())

    @contextlib.contextmanager
    def incoming(self) -> Generator[Path]:
        """Give the path of a file to write an upload to; what is left there is removed."""
        folder = self.files.folder(KIND)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{secrets.token_hex(8)}.safetensors"
        partial.touch(mode=0o600)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def take(self, name: str, upload: Path, owner: str, *, most: int) -> dict[str, Any]:
        """Make an upload a LoRA."""
        self.files.check_name(name)
        found = describe_adapter(KIND, name, upload)
        if found["error"]:
            raise InvalidRequest(
                f"the body must be a LoRA as a safetensors file: {_without(upload, found)}",
                field="body",
            )
        with self._lock:
            if name in self.files.names(KIND):
                raise InvalidRequest(f"LoRA {name} exists already; give another name", field="name")
            if owner and most and self.count(owner) >= most:
                raise Refused(f"this key has {most} LoRAs, as many as it may; drop one first")
            self.files.put(KIND, name, upload, owner=owner)
        return self._describe(name, owner)

    def drop(self, name: str, client: str, *, sees_all: bool) -> None:
        """Remove a LoRA."""
        with self._lock:
            self._find(name, client, sees_all=sees_all)
            if not sees_all and not self.files.owners(KIND).get(name):
                raise Refused(f"LoRA {name} is everybody's: a key that may manage drops it")
            self.files.remove(KIND, name)

    def _find(self, name: str, client: str, *, sees_all: bool) -> None:
        hidden = self.hidden_from(client, sees_all=sees_all)
        if name not in self.files.names(KIND) or name in hidden:
            raise self._unknown(name, hidden, "name")

    def _unknown(self, name: str, hidden: frozenset[str], field: str) -> UnknownName:
        names = [known for known in self.files.names(KIND) if known not in hidden]
        return UnknownName(KIND, name, names, field=field)

    def _describe(self, name: str, owner: str) -> dict[str, Any]:
        path = self.files.path(KIND, name)
        told = describe_adapter(KIND, name, path)
        told["error"] = _without(path, told)
        return {"kind": KIND, **told, "path": path.name, "owner": owner}


def _without(path: Path, told: Mapping[str, Any]) -> str:
    """Return what is wrong with a file, without the place where it lies."""
    return str(told["error"]).replace(str(path), "the file")
