"""TorchServe archives: their models as data, their code never.

A ``.mar`` is a zip, a gzipped tar or a plain folder with ``MAR-INF/MANIFEST.json``
and files beside it; the generative examples put a second zip inside. What is looked
for is data: a diffusers folder, a safetensors checkpoint, a GAN folder, or the
checkpoint of a DCGAN, which is converted. Python files are left behind; an archive
that holds nothing but them is recorded by its digest, for an operator to allow.

Source: TorchServe's model-archiver and frontend/archive (WIRE, section T6);
examples/diffusers and examples/dcgan_fashiongen.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from mezzotint.errors import ArchiveError, ModelNotAllowed, WeightsError
from mezzotint.models.cards import Card
from mezzotint.models.digests import DIGESTS
from mezzotint.models.formats.archive import SUFFIXES, Unpacked, check_data
from mezzotint.models.formats.handler_defaults import HandlerDefaults, read_defaults
from mezzotint.models.formats.identify import identify
from mezzotint.models.formats.safe_unpacking import (
    ArchiveLimits,
    Contents,
    Entry,
    check_name,
    open_tar,
    open_zip,
    unpack,
)
from mezzotint.models.parts import combine_digests

__all__ = ["MarInfo", "card_of", "inspect_mar", "unpack_code", "unpack_mar"]

MANIFEST = "MAR-INF/MANIFEST.json"
CHECKPOINTS = (".pt", ".pth", ".bin", ".tar", ".ckpt")
_MAX_MANIFEST_BYTES = 1 << 20
_LIMITS = ArchiveLimits(max_files=5000)


@dataclass(frozen=True, slots=True, kw_only=True)
class MarInfo:
    """What a TorchServe archive says about itself.

    Args:
        name: ``modelName`` of the manifest.
        version: ``modelVersion``.
        handler: Its handler: a built-in name of TorchServe, or a file inside.
        serialized_file: The weights, "" if none are named.
        model_file: The Python file with the network's class, "" if none is named.
        has_code: Whether it holds Python files.
        digest: sha256 of the archive; for a folder, over its files.
        files: Names of all files.
        defaults: What the text of its handler asks the pipeline for.
    """

    name: str
    version: str
    handler: str = ""
    serialized_file: str = ""
    model_file: str = ""
    has_code: bool = False
    digest: str = ""
    files: tuple[str, ...] = ()
    defaults: HandlerDefaults = field(default_factory=HandlerDefaults)


@dataclass(frozen=True, slots=True)
class _Folder:
    """A plain folder in the place of an archive."""

    root: Path
    entries: tuple[Entry, ...]

    def open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return (self.root / name).open("rb")


@contextlib.contextmanager
def _open(path: Path) -> Generator[Contents]:
    """Open a zip, a gzipped tar or a folder; a tar's leading folder stays."""
    source = str(path)
    if path.is_dir():
        yield _Folder(path, _list_folder(path))
        return
    with path.open("rb") as stream:
        start = stream.read(4)
    if start.startswith(b"PK"):
        with open_zip(path, _LIMITS, source=source) as contents:
            yield contents
    elif start.startswith(b"\x1f\x8b"):
        with open_tar(path, _LIMITS, source=source) as contents:
            yield contents
    else:
        raise ArchiveError(f"{source} is neither a zip nor a gzipped tar")


def _list_folder(path: Path) -> tuple[Entry, ...]:
    """List a folder's files; links may not lead out of it."""
    entries: list[Entry] = []
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            raise ArchiveError(f"{path}: {file.name!r} is a link; refused")
        if file.is_file():
            name = check_name(file.relative_to(path).as_posix(), _LIMITS, source=str(path))
            entries.append(Entry(name, file.stat().st_size, file.stat().st_size))
            if len(entries) > _LIMITS.max_files:
                raise ArchiveError(f"{path} holds more than {_LIMITS.max_files} files")
    return tuple(entries)


def inspect_mar(path: Path) -> MarInfo:
    """Read a TorchServe archive's manifest, unpacking nothing.

    Raises:
        ArchiveError: If it is unsafe, broken, or has no manifest.
    """
    path = Path(path)
    with _open(path) as contents:
        return _read_info(path, contents)


def _read_info(path: Path, contents: Contents) -> MarInfo:
    names = [entry.name for entry in contents.entries]
    manifests = [n for n in names if n == MANIFEST or n.endswith("/" + MANIFEST)]
    if not manifests:
        raise ArchiveError(f"{path} has no {MANIFEST}: it is no TorchServe archive")
    manifest = min(manifests, key=len)
    try:
        with contents.open(manifest) as stream:
            model = json.loads(stream.read(_MAX_MANIFEST_BYTES))["model"]
        name, version = str(model["modelName"]), str(model.get("modelVersion", "1.0"))
        handler, serialized = str(model.get("handler", "")), str(model.get("serializedFile") or "")
        model_file = str(model.get("modelFile") or "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArchiveError(f"{path}: {manifest} cannot be understood: {error}") from None
    if path.is_dir():
        digest = combine_digests({n: DIGESTS.digest(path / n) for n in names})
    else:
        digest = DIGESTS.digest(path)
    return MarInfo(
        name=name,
        version=version,
        handler=handler,
        serialized_file=serialized,
        model_file=model_file,
        has_code=any(n.endswith((".py", ".pyc", ".so")) for n in names),
        digest=digest,
        files=tuple(names),
        defaults=_read_handler(contents, names, handler),
    )


def _read_handler(contents: Contents, names: list[str], handler: str) -> HandlerDefaults:
    """Read what the handler's file says, if the archive holds it."""
    file = f"{handler.partition(':')[0].removesuffix('.py')}.py"
    found = [n for n in names if handler and (n == file or n.endswith("/" + file))]
    if not found:
        return HandlerDefaults()
    with contents.open(min(found, key=len)) as stream:
        text = stream.read(_MAX_MANIFEST_BYTES)
    return read_defaults(text.decode("utf-8", "replace"))


def unpack_mar(path: Path, cache: Path) -> Unpacked:
    """Unpack the model in a TorchServe archive, once, under the archive's digest.

    Args:
        path: The archive: zip, gzipped tar or folder.
        cache: Folder of unpacked archives.

    Returns:
        Where the model lies; layout ``"handler"`` if there is only code.

    Raises:
        ArchiveError: If anything about it is unsafe or broken.
    """
    path = Path(path)
    with _open(path) as contents:
        info = _read_info(path, contents)
        target = cache / info.digest[:32]
        notes: list[str] = []
        if info.has_code:
            notes.append("the archive's Python code was left behind; its model is used as data")
        if not target.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            work = cache / f".{info.digest[:16]}.{secrets.token_hex(6)}.partial"
            try:
                unpack(contents, work / "all", source=str(path))
                _open_inner(work / "all", work, str(path))
                found = _find_model(work / "all", work / "model", notes)
                if found is None:
                    return _handler(info, path)
                check_data(found)
                os.replace(found, target)
            except WeightsError as error:
                raise ArchiveError(f"{path}: {error}") from None
            finally:
                shutil.rmtree(work, ignore_errors=True)
    inside = list(target.iterdir())
    single = len(inside) == 1 and inside[0].suffix == ".safetensors"
    model = inside[0] if single else target
    return Unpacked(
        path=model,
        layout=identify(model),
        card=card_of(info),
        digest=info.digest,
        notes=tuple(notes),
    )


def unpack_code(path: Path, target: Path, *, digest: str) -> MarInfo:
    """Unpack a whole archive, code included, if it is the one whose digest is allowed.

    The archive is copied first and the copy is measured, so that nobody can change it
    between the look and the unpacking.

    Args:
        path: The archive: zip, gzipped tar or folder.
        target: Folder to make.
        digest: sha256 that was allowed.

    Raises:
        ModelNotAllowed: If the archive has another digest by now.
        ArchiveError: If anything about it is unsafe or broken.
    """
    path = Path(path)
    target.mkdir(parents=True)
    copy = target / "archive"
    try:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)
    except OSError as error:
        raise ArchiveError(f"{path} cannot be read: {error.strerror or error}") from None
    with _open(copy) as contents:
        info = _read_info(copy, contents)
        if info.digest != digest:
            raise ModelNotAllowed(
                f"{path} has changed since it was allowed: its sha256 is {info.digest} now"
            )
        names = [entry.name for entry in contents.entries]
        lead = {name.partition("/")[0] for name in names}
        strip = len(lead.pop()) + 1 if len(lead) == 1 and MANIFEST not in names else 0
        places = {name: name[strip:] for name in names}
        unpack(contents, target / "model", source=str(path), names=places)
    (shutil.rmtree if copy.is_dir() else os.unlink)(copy)
    return info


def card_of(info: MarInfo) -> Card:
    """Return what an archive declares, in names that the store takes."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", info.name).strip(".-_")[:100] or "model"
    version = re.sub(r"[^A-Za-z0-9._-]", "-", info.version).strip(".-_")[:100] or "1.0"
    said = info.defaults
    has_size = said.width is not None and said.height is not None
    return Card(
        name=plain,
        version=version,
        description="Imported from a TorchServe archive.",
        default_steps=said.num_inference_steps,
        default_guidance_scale=said.guidance_scale,
        default_size=(said.width, said.height) if has_size else None,  # type: ignore[arg-type]
        predictions="array" if said.answers_lists else None,
    )


def _handler(info: MarInfo, path: Path) -> Unpacked:
    """Record an archive that holds no model data that we know."""
    if not info.has_code:
        raise ArchiveError(
            f"{path} holds neither a model that we know nor handler code; found "
            f"{', '.join(info.files[:8])}"
        )
    return Unpacked(path=path.resolve(), layout="handler", card=card_of(info), digest=info.digest)


def _open_inner(folder: Path, work: Path, source: str) -> None:
    """Unpack the zips inside, one level, each beside itself."""
    for number, inner in enumerate(sorted(folder.rglob("*.zip"))):
        place = inner.with_suffix(inner.suffix + ".files")
        with open_zip(inner, _LIMITS, source=f"{source}: {inner.name}") as contents:
            unpack(contents, work / f"inner-{number}", source=f"{source}: {inner.name}")
        os.replace(work / f"inner-{number}", place)
        inner.unlink()


def _find_model(folder: Path, target: Path, notes: list[str]) -> Path | None:
    """Find the model among unpacked files and copy what belongs to it; None if none is there."""
    for marker in ("model_index.json", "mezzotint_run.json", "generator.safetensors"):
        for found in sorted(folder.rglob(marker), key=lambda p: len(p.parts)):
            return _keep_data(found.parent, target, notes)
    checkpoints = sorted(folder.rglob("*.safetensors"))
    if len(checkpoints) == 1:
        target.mkdir()
        os.replace(checkpoints[0], target / checkpoints[0].name)
        return target
    return _convert_checkpoint(folder, target, notes)


def _keep_data(folder: Path, target: Path, notes: list[str]) -> Path:
    """Move the data files of a model folder; convert weights that are pickles."""
    left_out: list[str] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        inner = PurePosixPath(path.relative_to(folder).as_posix())
        place = target / inner
        if path.suffix in SUFFIXES:
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        elif path.suffix == ".bin" and not _has_safetensors(path):
            place.parent.mkdir(parents=True, exist_ok=True)
            _convert_bin(path, place)
            notes.append(f"{inner} was converted from a pickle to safetensors")
        else:
            left_out.append(str(inner))
    if left_out:
        notes.append(f"left out: {', '.join(left_out[:5])}" + (", ..." if left_out[5:] else ""))
    return target


def _has_safetensors(path: Path) -> bool:
    """Tell whether a pickle's folder has the same weights in the safe form."""
    return any(path.parent.glob("*.safetensors"))


def _convert_bin(path: Path, place: Path) -> None:
    """Convert one network's pickle, as diffusers names it, to safetensors."""
    from safetensors.torch import save_file
    from torch import Tensor

    from mezzotint.models.formats.checkpoint_scan import read_checkpoint

    state = {k: v for k, v in read_checkpoint(path).items() if isinstance(v, Tensor)}
    name = place.name.replace("pytorch_model", "model") if place.name == "pytorch_model.bin" else ""
    name = name or place.name
    save_file(
        {k: v.clone().contiguous() for k, v in state.items()},
        place.with_name(name.removesuffix(".bin") + ".safetensors"),
        metadata={"format": "pt"},
    )


def _convert_checkpoint(folder: Path, target: Path, notes: list[str]) -> Path | None:
    """Convert the one checkpoint that is a DCGAN's generator, if there is one."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in CHECKPOINTS and p.is_file()]
    if not files:
        return None
    from mezzotint.models.formats.checkpoint_scan import import_gan

    reasons: list[str] = []
    for path in files:
        try:
            import_gan(path, target)
        except WeightsError as error:
            reasons.append(str(error).replace(str(path), path.name))
            continue
        notes.append(f"{path.name} was converted from a pickle to safetensors")
        return target
    if any("unsafe" in reason for reason in reasons):
        raise ArchiveError(reasons[0])
    return None
