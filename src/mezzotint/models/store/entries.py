"""Entries: one version of one model, and the cards that say which are in the store."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.errors import ModelError, ModelNotAllowed
from mezzotint.models.cards import Card, builtin_cards, read_card
from mezzotint.models.formats.identify import ModelLayout

__all__ = [
    "ModelEntry",
    "builtin_entries",
    "describe_handler",
    "handler_refusal",
    "is_name",
    "name_in_memory",
    "only_file",
    "read_text",
    "stored_entries",
]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_name(text: str) -> bool:
    """Whether a text can name a model, or a version of one, in the store."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One version of one model in the store.

    Args:
        name: Name in the store, or the path.
        version: Version, text.
        card: What is declared about it.
        path: Folder or file; for a Hub model where it was fetched to.
        is_default: Whether the bare name means this version.
        is_builtin: Whether it comes with the program.
        is_owned: Whether its files lie in the store and go with it.
        layout: What kind of model it is; ``"handler"`` for an archive whose only
            content is Python handler code.
        digest: sha256 of a handler archive, "" otherwise.
        written_at_ns: When its card was written, for one in the store; the same name with
            another time may be other files.
    """

    name: str
    version: str
    card: Card
    path: Path
    is_default: bool = True
    is_builtin: bool = False
    is_owned: bool = False
    layout: ModelLayout | str = ""
    digest: str = ""
    written_at_ns: int = 0

    @property
    def full_name(self) -> str:
        """``name@version``, which means this version whatever the default is."""
        return f"{self.name}@{self.version}"


def builtin_entries() -> Iterator[ModelEntry]:
    """Give the models that come with the program."""
    for card in builtin_cards().values():
        yield ModelEntry(
            name=card.name,
            version=card.version,
            card=card,
            path=Path(card.path),
            is_builtin=True,
        )


def stored_entries(root: Path) -> Iterator[ModelEntry]:
    """Read the cards under a folder of models; a broken card does not hide the others."""
    for path in sorted(root.glob("*/*/card.toml")) if root.is_dir() else ():
        with contextlib.suppress(ModelError, OSError):
            card = read_card(path)
            files = path.parent / "files"
            yield ModelEntry(
                name=card.name,
                version=card.version,
                card=card,
                path=Path(card.path) if card.path else only_file(files),
                is_owned=files.is_dir(),
                layout="handler" if (path.parent / "handler.txt").is_file() else "",
                digest=read_text(path.parent / "handler.txt"),
                written_at_ns=path.stat().st_mtime_ns,
            )


def handler_refusal(entry: ModelEntry, *, is_allowed: bool) -> ModelNotAllowed:
    """Say why an archive of handler code is no model here."""
    if is_allowed:
        return ModelNotAllowed(
            f"model {entry.name} is handler code, allowed here; it answers at the TorchServe "
            "door only"
        )
    return ModelNotAllowed(
        f"model {entry.name} is an archive with Python handler code, which does not run "
        f"unless the operator sets allow_handler_code and allows its sha256 {entry.digest}"
    )


def describe_handler(entry: ModelEntry) -> dict[str, Any]:
    """Return what lists show of an archive of handler code, in the fields of a model."""
    return {
        "family": "handler",
        "digest": entry.digest,
        "licence": entry.card.licence or "unknown",
        "defaults": {},
        "takes_prompt": False,
        "size_multiple": 1,
        "min_size_px": 1,
        "max_size_px": 1,
    }


def name_in_memory(entry: ModelEntry) -> str:
    """Return what a loaded model is known by; a path or Hub id has no version."""
    return entry.full_name if entry.version else entry.name


def only_file(folder: Path) -> Path:
    """Return the checkpoint of a folder that holds nothing else, or the folder."""
    inside = list(folder.iterdir()) if folder.is_dir() else []
    single = len(inside) == 1 and inside[0].suffix == ".safetensors"
    return inside[0] if single else folder


def read_text(path: Path) -> str:
    """Read a short text file, "" if it is not there."""
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
