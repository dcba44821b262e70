"""Archives: a model in one file, as data only.

A ``.mzt`` is a zip of a ``manifest.json`` and the model's safetensors, JSON and
tokenizer texts. The manifest names every file with its sha256 and size; a file
that it does not name, or of another kind, makes the whole archive refused. Packing
is deterministic: equal models make equal bytes.
"""

import hashlib
import json
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mezzotint.errors import ArchiveError, CardError, MezzotintError
from mezzotint.files import atomic_path, digest_file
from mezzotint.models.cards import Card, card_from_plain
from mezzotint.models.formats.identify import ModelLayout, identify
from mezzotint.models.formats.safe_unpacking import ArchiveLimits, Contents, open_zip, unpack
from mezzotint.models.parts import combine_digests, read_header

__all__ = ["FORMAT", "Manifest", "Unpacked", "inspect_archive", "pack", "unpack_archive"]

FORMAT = "mezzotint-archive/1"
MANIFEST = "manifest.json"
SUFFIXES = (".safetensors", ".json", ".txt")
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_JSON_BYTES = 64 << 20
_SKIPPED_SUFFIXES = (".md", ".png", ".jpg", ".jpeg", ".webp", ".html", ".log", "")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_DEFAULTS = (
    "default_size",
    "default_steps",
    "default_guidance_scale",
    "default_scheduler",
    "default_sigma_schedule",
    "prediction_type",
    "min_size_px",
    "max_size_px",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive says about itself.

    Args:
        name: Name of the model.
        version: Its version.
        family: Its family.
        layout: How its files lie: ``pipeline``, ``gan``, ``run`` or ``single_file``.
        files: ``{path: {"sha256", "size"}}``.
        defaults: Card fields that override the files.
        licence: SPDX id or a sentence.
        description: A sentence for people.
    """

    name: str
    version: str
    family: str = ""
    layout: str = "pipeline"
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    licence: str = "unknown"
    description: str = ""

    @property
    def digest(self) -> str:
        """One sha256 over all files: the model's content digest."""
        return combine_digests({name: str(entry["sha256"]) for name, entry in self.files.items()})

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, unpacked."""
        return sum(int(entry["size"]) for entry in self.files.values())

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in ``manifest.json``."""
        return {"format": FORMAT, **asdict(self)}

    def card(self) -> Card:
        """Return the card of the unpacked model.

        Raises:
            CardError: If name, version or defaults are not what a card takes.
        """
        return card_from_plain(
            {
                "name": self.name,
                "version": self.version,
                "family": self.family,
                "licence": self.licence,
                "description": self.description,
                **self.defaults,
                "sha256": {name: entry["sha256"] for name, entry in self.files.items()},
            },
            source=MANIFEST,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """A model that came out of an archive.

    ``layout`` is ``"handler"`` where there is nothing but Python handler code;
    ``digest`` is then what an operator allows. ``notes`` says what was left out.
    """

    path: Path
    layout: ModelLayout | str
    card: Card
    digest: str
    notes: tuple[str, ...] = ()


def pack(
    source: Path,
    target: Path,
    *,
    name: str,
    version: str = "1.0",
    licence: str = "unknown",
    description: str = "",
    defaults: Mapping[str, Any] | None = None,
) -> Manifest:
    """Pack a model folder or file.

    Args:
        source: A diffusers folder, GAN folder, run folder or ``.safetensors`` file.
        target: The ``.mzt`` to write, whole or not at all.
        name: Name of the model.
        version: Its version.
        licence: SPDX id or a sentence.
        description: A sentence for people.
        defaults: Card fields, e.g. ``{"default_steps": 20}``.

    Returns:
        The manifest that was written.

    Raises:
        ArchiveError: If the folder holds pickles or code, or no model.
        ModelError: If it is no model.
        OSError: If it cannot be read or written.
    """
    source = Path(source)
    layout = identify(source)
    if layout in ("archive", "mar"):
        raise ArchiveError(f"{source} is an archive already")
    paths = _files_to_pack(source)
    files = {
        inner: {"sha256": digest_file(path), "size": path.stat().st_size}
        for inner, path in paths.items()
    }
    manifest = Manifest(
        name=name,
        version=version,
        family=_family(source, layout),
        layout=layout,
        files=files,
        defaults=dict(defaults or {}),
        licence=licence,
        description=description,
    )
    manifest.card()  # refuses defaults that nobody could read again
    text = json.dumps(manifest.to_plain(), indent=1, sort_keys=True, ensure_ascii=False)
    with atomic_path(target) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.writestr(_info(MANIFEST), text.encode(), compresslevel=6)
        for inner, path in paths.items():
            info = _info(inner, size=path.stat().st_size)
            with path.open("rb") as reader, archive.open(info, "w") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)
    return manifest


def _info(name: str, size: int = 0) -> zipfile.ZipInfo:
    """Describe an entry so that equal content makes equal bytes."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3
    info.external_attr = 0o100644 << 16
    info.file_size = size
    is_weights = name.endswith(".safetensors")  # random bits do not shrink
    info.compress_type = zipfile.ZIP_STORED if is_weights else zipfile.ZIP_DEFLATED
    return info


def _files_to_pack(source: Path) -> dict[str, Path]:
    """Choose the files of a model; leave texts for people out, refuse code."""
    if source.is_file():
        return {source.name: source}
    chosen: dict[str, Path] = {}
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source).as_posix()
        hidden = any(part.startswith(".") for part in path.relative_to(source).parts)
        if path.is_symlink() and path.is_dir():
            raise ArchiveError(f"{path} is a linked folder; pack the folder itself")
        if hidden or not path.is_file() or path.suffix.lower() in _SKIPPED_SUFFIXES:
            continue
        if path.suffix not in SUFFIXES:
            raise ArchiveError(
                f"{path} is not safetensors, JSON or text; an archive holds nothing else. "
                "Convert or remove it"
            )
        chosen[inner] = path
    return chosen


def _family(source: Path, layout: ModelLayout) -> str:
    """Guess the family for lists, from names alone."""
    if layout != "pipeline":
        return {"gan": "gan", "run": "denoiser"}.get(layout, "sd")
    index = json.loads((source / "model_index.json").read_text("utf-8"))
    name = str(index.get("_class_name", ""))
    known = {
        "StableDiffusionPipeline": "sd",
        "StableDiffusionXLPipeline": "sdxl",
        "StableDiffusion3Pipeline": "sd3",
        "FluxPipeline": "flux",
        "DDPMPipeline": "unconditional",
        "DDIMPipeline": "unconditional",
        "DiTPipeline": "dit",
    }
    return known.get(name, "foreign")


def inspect_archive(
    path: Path, *, limits: ArchiveLimits | None = None, verify: bool = False
) -> Manifest:
    """Read an archive's manifest and check its table of contents, unpacking nothing.

    Args:
        path: The ``.mzt``.
        limits: What it may hold.
        verify: Whether to read every file and compare its digest, too.

    Raises:
        ArchiveError: If anything about it is not as it should be.
    """
    with open_zip(Path(path), limits or ArchiveLimits(), source=str(path)) as contents:
        manifest = _read_manifest(contents, str(path))
        for name in manifest.files if verify else ():
            found = hashlib.sha256()
            try:
                with contents.open(name) as stream:
                    while chunk := stream.read(1 << 20):
                        found.update(chunk)
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise ArchiveError(f"{path}: {name!r} is corrupt: {error}") from None
            _check_digest(str(path), name, str(manifest.files[name]["sha256"]), found.hexdigest())
        return manifest


def _read_manifest(contents: Contents, source: str) -> Manifest:
    """Read the manifest and compare it with what is there."""
    sizes = {entry.name: entry.size for entry in contents.entries}
    if MANIFEST not in sizes:
        raise ArchiveError(f"{source} has no {MANIFEST}")
    if sizes[MANIFEST] > _MAX_MANIFEST_BYTES:
        raise ArchiveError(f"{source}: {MANIFEST} has {sizes[MANIFEST]} bytes")
    try:
        with contents.open(MANIFEST) as stream:
            data = json.loads(stream.read(_MAX_MANIFEST_BYTES))
        if data.pop("format", None) != FORMAT:
            raise ArchiveError(f"{source}: {MANIFEST} is not of the format {FORMAT}")
        manifest = Manifest(**data)
        files = {
            str(name): {"sha256": str(entry["sha256"]), "size": int(entry["size"])}
            for name, entry in manifest.files.items()
        }
        manifest = replace(manifest, files=files)
        manifest.card()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ArchiveError(f"{source}: {MANIFEST} cannot be understood: {error}") from None
    except (CardError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ArchiveError(f"{source}: {error}") from None
    there = {name: size for name, size in sizes.items() if name != MANIFEST}
    _compare(source, files, there)
    return manifest


def _compare(
    source: str, promised: Mapping[str, Mapping[str, Any]], there: Mapping[str, int]
) -> None:
    """Refuse files that are missing, too many, of another size or of another kind."""
    for name in sorted({*promised, *there}):
        if name not in there:
            raise ArchiveError(f"{source} lacks {name!r}, which its manifest names")
        if name not in promised:
            raise ArchiveError(f"{source} holds {name!r}, which its manifest does not name")
        if Path(name).suffix not in SUFFIXES:
            raise ArchiveError(
                f"{source}: {name!r} is not safetensors, JSON or text; refused whatever it is"
            )
        if promised[name]["size"] != there[name]:
            raise ArchiveError(
                f"{source}: {name!r} should have {promised[name]['size']} bytes, has {there[name]}"
            )
        if not re.fullmatch(r"[0-9a-f]{64}", str(promised[name]["sha256"])):
            raise ArchiveError(f"{source}: {name!r} has no sha256 in the manifest")


def _check_digest(source: str, name: str, expected: str, found: str) -> None:
    if expected != found:
        raise ArchiveError(
            f"{source}: {name!r} is corrupt: expected sha256 {expected}, got {found}"
        )


def unpack_archive(path: Path, target: Path, *, limits: ArchiveLimits | None = None) -> Manifest:
    """Unpack an archive into a folder that does not exist yet, and check all of it.

    Args:
        path: The ``.mzt``.
        target: Folder to make; nothing is left of it on any error.
        limits: What the archive may hold.

    Raises:
        ArchiveError: If anything about it is not as it should be.
        OSError: If it cannot be written.
    """
    path, target = Path(path), Path(target)
    source = str(path)
    with open_zip(path, limits or ArchiveLimits(), source=source) as contents:
        manifest = _read_manifest(contents, source)
        names = {name: name for name in manifest.files}
        found = unpack(contents, target, source=source, names=names)
    try:
        for name, digest in found.items():
            _check_digest(source, name, str(manifest.files[name]["sha256"]), digest)
        check_data(target)
        if manifest.layout == "single_file":
            if len(found) != 1:
                raise ArchiveError(f"{source} should hold one file, holds {len(found)}")
        elif identify(target) != manifest.layout:
            raise ArchiveError(f"{source} says it is a {manifest.layout}, which it is not")
    except MezzotintError as error:
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, ArchiveError):
            raise
        raise ArchiveError(f"{source}: {error}") from None
    return manifest


def check_data(folder: Path) -> None:
    """Refuse JSON that is none and safetensors whose header does not fit.

    Raises:
        ArchiveError: If a JSON file is broken.
        WeightsError: If a safetensors file is broken.
    """
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            try:
                if path.stat().st_size > _MAX_JSON_BYTES:
                    raise ValueError("it is too large")
                json.loads(path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise ArchiveError(f"{path.name} is broken JSON: {error}") from None
        elif path.suffix == ".safetensors":
            read_header(path)
