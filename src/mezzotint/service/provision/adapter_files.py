"""Adapter files: where LoRAs, ControlNets, IP-Adapters and textual inversions lie. Torch-free.

Each kind has a folder of its own below the home folder. A file that is added is copied there,
a folder stays where it is and is linked to. A few come with the package: they are everybody's,
an adapter of the home folder with such a name takes their place, and none removes them.
"""

import contextlib
import re
import secrets
import shutil
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import mezzotint.models
from mezzotint.errors import InvalidRequest, UnknownName, WeightsError
from mezzotint.files import atomic_path, expanded, is_there, write_atomically
from mezzotint.models.reading import refuse_special_below
from mezzotint.techniques.table import TECHNIQUES, Technique

__all__ = ["KINDS", "LORA_OF_RUN", "AdapterFiles", "KeptAdapter", "shipped"]

LORA_OF_RUN = "pytorch_lora_weights.safetensors"
"""The file that a run of ``kind = "lora"`` leaves, and diffusers saves a LoRA under."""
_SHIPPED = Path(mezzotint.models.__file__).parent / "builtin"
_OWNERS = ".owners"  # folder of notes below that of a kind
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_INCOMING = re.compile(r"\.[0-9a-f]{16}\.safetensors")


KINDS: Mapping[str, Technique] = MappingProxyType({t.adapter: t for t in TECHNIQUES if t.adapter})
"""The technique of each kind of adapter: its row says where they lie and what their files are."""


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """One adapter of the home folder as it was when it was looked at.

    Args:
        owner: Client of a server whose it is; "" for everybody's, None if that cannot be told.
        file: Its file or folder.
        state: What changes when another takes its place: device, inode, time and size.
    """

    owner: str | None
    file: Path
    state: tuple[int, ...]


class AdapterFiles:
    """The adapters of one installation, as files.

    Args:
        home: Folder of the installation.
        allow_paths: Whether a name may be a path.
    """

    def __init__(self, home: Path, *, allow_paths: bool) -> None:
        self._home = home
        self._allow_paths = allow_paths

    def folder(self, kind: str) -> Path:
        """Return the folder of one kind; it need not exist."""
        return self._home / KINDS[kind].folder

    def names(self, kind: str) -> tuple[str, ...]:
        """Return the names of one kind, sorted."""
        folder, suffixes = self.folder(kind), KINDS[kind].suffixes
        found = folder.iterdir() if folder.is_dir() else ()
        return tuple(
            sorted(
                {
                    path.name if path.is_dir() else path.stem
                    for path in found
                    if not path.name.startswith(".")
                    and (("" in suffixes) if path.is_dir() else path.suffix in suffixes)
                }
            )
        )

    def usable(self, kind: str) -> tuple[str, ...]:
        """Return the names of one kind that mean something here, those that ship too, sorted."""
        return tuple(sorted({*self.names(kind), *shipped(kind)}))

    def path(self, kind: str, name: str) -> Path:
        """Return where an adapter lies, by name or, where allowed, by path.

        The folder of a run that learnt a LoRA stands for that LoRA.

        Raises:
            UnknownName: If there is none.
        """
        if name in self.names(kind) and (found := self._file(kind, name)) is not None:
            return found
        if (found := shipped(kind).get(name)) is not None:
            return found
        if self._allow_paths and (found := self.at(kind, name)) is not None:
            return found
        shared = {one for one, kept in self.kept(kind).items() if kept.owner == ""}
        shared |= shipped(kind).keys()
        raise UnknownName(kind.replace("_", " "), name, sorted(shared), field=KINDS[kind].named_in)

    def _file(self, kind: str, name: str) -> Path | None:
        """Return where the adapter of a name lies, None if it is gone meanwhile."""
        stem = self.folder(kind) / name
        files = (stem.with_name(name + suffix) for suffix in KINDS[kind].suffixes)
        return next((file for file in files if is_there(file)), None)

    def at(self, kind: str, name: str) -> Path | None:
        """Return the adapter that a name means as a path, whether or not paths are allowed."""
        path = expanded(name)
        return _adapter_at(kind, path) if is_there(path) else None

    def add(self, kind: str, name: str, source: Path, *, replace: bool = False) -> Path:
        """Add an adapter under a name.

        Args:
            kind: One of :data:`KINDS`.
            name: Letters, digits, ``.``, ``_`` and ``-``.
            source: Its file, its folder, or for a LoRA the folder of the run that learnt it.
            replace: Whether it may take the place of one that has the name.

        Returns:
            Where it is now.

        Raises:
            InvalidRequest: If the name is none, or taken.
            WeightsError: If there is no adapter of that kind at ``source``.
        """
        self.check_name(name, "NAME")
        is_taken = name in self.names(kind)
        if is_taken and not replace:
            raise InvalidRequest(
                f"{kind.replace('_', ' ')} {name} exists already; remove it first or give another "
                "name",
                field="NAME",
            )
        refuse_special_below(source)
        found = _adapter_at(kind, source)
        if found is None:
            wanted = " or ".join(s or "a folder" for s in KINDS[kind].suffixes)
            raise WeightsError(f"{source} is no {kind.replace('_', ' ')}: expected {wanted}")
        folder = self.folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / (name if found.is_dir() else f"{name}{found.suffix}")
        if is_taken and (found.is_dir() or not target.is_file()):
            self.remove(kind, name)
        if found.is_dir():
            try:
                target.symlink_to(found.absolute(), target_is_directory=True)
            except OSError:  # a file system, or a Windows user, without links
                shutil.copytree(found, target)
        else:
            with atomic_path(target) as partial:
                shutil.copyfile(found, partial)
        self._note(kind, name, "")
        return target

    def check_name(self, name: str, field: str = "name") -> None:
        """Refuse what cannot be a name.

        Raises:
            InvalidRequest: If it holds anything but letters, digits, ``.``, ``_`` and ``-``.
        """
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"{field} must be letters, digits, '.', '_' or '-', 1 to 100 of them, got "
                f"{name[:200]!r}",
                field=field,
            )

    def put(self, kind: str, name: str, file: Path, *, owner: str) -> None:
        """Move a file of the kind's folder to a name that is free, for an owner.

        Args:
            kind: One of :data:`KINDS`.
            name: One that :meth:`check_name` lets pass.
            file: The file, whole.
            owner: Client of a server whose it is; "" for everybody's.
        """
        self._note(kind, name, owner)  # it is nobody else's from the first moment on
        file.replace(self.folder(kind) / f"{name}{KINDS[kind].suffixes[0]}")

    @contextlib.contextmanager
    def incoming(self, kind: str) -> Generator[Path]:
        """Give the path of a file for :meth:`put`; what is left there is removed."""
        folder = self.folder(kind)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{secrets.token_hex(8)}{KINDS[kind].suffixes[0]}"
        partial.touch(mode=0o600)
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def sweep(self, kind: str) -> None:
        """Remove what a server that was killed left of :meth:`incoming`; none may be under way."""
        folder = self.folder(kind)
        for path in folder.iterdir() if folder.is_dir() else ():
            if _INCOMING.fullmatch(path.name):
                with contextlib.suppress(OSError):
                    path.unlink()

    def kept(self, kind: str) -> dict[str, KeptAdapter]:
        """Return the adapters of one kind, each with whose it is, sorted by name.

        A file is looked at before and after its note is read: one that came, went or was
        exchanged meanwhile is nobody's, and so is one whose note cannot be read.
        """
        found: dict[str, KeptAdapter] = {}
        for name in self.names(kind):
            file = self._file(kind, name)
            before = _state(file)
            if file is None or before is None:
                continue
            owner = self._owner(kind, name)
            found[name] = KeptAdapter(owner if _state(file) == before else None, file, before)
        return found

    def _owner(self, kind: str, name: str) -> str | None:
        """Return what an adapter's note says, "" if it has none, None if it cannot be read."""
        try:
            return (self.folder(kind) / _OWNERS / name).read_text("utf-8") or None
        except FileNotFoundError:
            return ""
        except (OSError, ValueError):
            return None

    def _note(self, kind: str, name: str, owner: str) -> None:
        """Keep whose an adapter is, if it is not everybody's."""
        note = self.folder(kind) / _OWNERS / name
        if owner:
            note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(note, owner.encode(), mode=0o600)
        else:
            note.unlink(missing_ok=True)

    def remove(self, kind: str, name: str) -> Path:
        """Remove an adapter from the home folder; what was linked to stays where it is.

        Raises:
            UnknownName: If none is called that.
        """
        if name not in self.names(kind):
            label = kind.replace("_", " ")
            if name in shipped(kind):
                raise InvalidRequest(f"{name} comes with the package and stays", field="name")
            raise UnknownName(label, name, self.names(kind), field=KINDS[kind].named_in)
        path = self._file(kind, name)
        if path is None:  # gone meanwhile
            return self.folder(kind) / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self._note(kind, name, "")
        return path


def shipped(kind: str) -> dict[str, Path]:
    """Return the adapters of one kind that come with the package, by name."""
    technique = KINDS[kind]
    folder = _SHIPPED / technique.folder
    found = sorted(folder.iterdir()) if folder.is_dir() else ()
    return {path.stem: path for path in found if path.suffix in technique.suffixes and path.suffix}


def _state(path: Path | None) -> tuple[int, ...] | None:
    """Return what tells a file from another that takes its place; None if there is none."""
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size


def _adapter_at(kind: str, path: Path) -> Path | None:
    """Return the adapter of a kind at a path, or None."""
    suffixes = KINDS[kind].suffixes
    if path.is_dir() and "" not in suffixes:
        inner = path / LORA_OF_RUN
        return inner if kind == "lora" and inner.is_file() else None
    fits = path.is_dir() if path.is_dir() else path.is_file() and path.suffix in suffixes
    return path if fits else None
