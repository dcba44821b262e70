"""Exporting: a torch network becomes a file that OpenVINO runs, traced once for all sizes.

A network over pictures or latents is traced on a small one and left open in height and
width, so that one file and one compiled network serve every size: measured on U-Nets and
autoencoders, bits and speed are those of a network made for one size. Whether a network
can be left open is not taken on trust: its answer at another size, and to another number of
rows, is compared with torch's. One that is made for one size is compared at another number of
rows unless it is large or an autoencoder: a call of torch at that size would delay the first
picture.

The files lie in a folder whose bytes are bounded; who was used longest ago goes first. What a
backend makes of an export, an int8 network say, lies there too, under a seal: a file beside it
with the digests of both.

Dimensions: R rows, h and w rows and columns of a picture or of latents.
"""

import contextlib
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.files import atomic_path, digest_file, write_atomically
from mezzotint.models.backends.doubling import rearranged
from mezzotint.models.backends.mapped import giving_back, largest_constant, return_memory
from mezzotint.models.backends.quiet import import_openvino, quiet_tracing
from mezzotint.models.digests import DIGESTS
from mezzotint.models.networks import Call, TorchNetwork
from mezzotint.observe import log
from mezzotint.observe.stages import stage

__all__ = ["Exporter", "RowShape", "row_key"]

FORMAT = 2  # raise when an exported network of before can no longer be used
EXPORT_ROWS = 2  # a batch of one may be folded into the graph as a constant
_SEAL = ".seal"
_SUFFIXES = (".xml", ".bin", _SEAL)
_CHECK_ROWS = 3  # another number of rows, to compare at
_LARGE = 1 << 29  # bytes of a network that is not compared at one size
_PICTURES = ("decoder", "encoder")  # have much to compute however small they are

RowShape = tuple[tuple[str, str, tuple[int, ...]], ...]
"""Name, type and shape of one row of each input, in the order of names; -1 is open."""

_SIZED = ("images", "latents", "sample")  # inputs of whose last two dimensions nothing else knows
_LEAST_STRIDE = 8
_SPARE_BYTES = 1 << 22  # of a disk that an export leaves, beside the export's description
_AGREES = 1e-3  # of the largest value; float32 in another order of sums is at 1e-5

_EXPORTING = threading.Lock()  # the exporter patches modules while it traces them


def row_key(arrays: Mapping[str, Tensor]) -> RowShape:
    """Name the shape of a call's rows."""
    return tuple((n, str(t.dtype), tuple(t.shape[1:])) for n, t in arrays.items())


@dataclass(frozen=True, slots=True)
class _Check:
    """Inputs of another size or number than the traced ones, and what torch answers to them."""

    inputs: Sequence[Tensor]
    answers: Sequence[Tensor]


class Exporter:
    """Exports one network, and remembers where its exports are.

    Args:
        source: The torch network; built only if an export is needed, and let go after.
        role: Its role in the model; decoder and encoder may share weights.
        folder: Folder of exported networks, or None to keep them in memory only.
        max_bytes: Bytes that the folder may take; 0 is no bound.
        is_generator: Whether layers are rearranged for drawing whole pictures in one call.

    Attributes:
        notes: Why exports are not kept in the folder, if they are not.
    """

    def __init__(
        self,
        source: TorchNetwork,
        *,
        role: str,
        folder: Path | None,
        max_bytes: int = 0,
        is_generator: bool = False,
    ) -> None:
        self._source = source
        self._role = role
        self._folder = folder if source.digest else None
        self._max_bytes = max_bytes
        self.notes: tuple[str, ...] = ()
        self._is_generator = is_generator
        self._fixed = is_generator or source.fixes_sizes

    def open_key(self, key: RowShape) -> RowShape:
        """Return the shape that a call's export has: sizes are left open where they can be."""
        stride = self._stride
        sized = [shape for _, _, shape in key if len(shape) == 3]
        is_open = (
            not self._fixed
            and len(sized) == 1
            and any(name in _SIZED and len(shape) == 3 for name, _, shape in key)
            and all(side % stride == 0 for side in sized[0][1:])
        )
        if not is_open:
            return key
        opened = tuple(
            (name, kind, (shape[0], -1, -1) if len(shape) == 3 else shape)
            for name, kind, shape in key
        )
        if self._folder is not None and self._path(opened).with_suffix(".fixed").is_file():
            return key
        return opened

    def export(self, core: Any, arrays: Mapping[str, Tensor]) -> tuple[Any, RowShape]:
        """Return the export for a call: its file if there is a folder, else the network.

        Args:
            core: OpenVINO.
            arrays: The inputs of the call, by name in order; float32 or whole numbers.

        Returns:
            The export, and the shape it is for.
        """
        key = row_key(arrays)
        opened = self.open_key(key)
        if self._folder is not None and _is_whole(path := self._path(opened)):
            with contextlib.suppress(OSError):
                os.utime(path)
            return path, opened
        if opened != key:
            check = self._answer_elsewhere(arrays)
            exported = self._keep(self._trace_small(arrays), opened) if check else None
            return_memory()  # torch's copy of the weights, before OpenVINO makes its own
            with stage("comparing", self._role, self._source.num_bytes):
                agrees = _agrees(core, exported, check)
            if agrees:
                return exported, opened
            self._forget(opened)
        is_quick = self._source.num_bytes < _LARGE and self._role not in _PICTURES
        rows = self._answer_rows(arrays) if is_quick else None
        exported = self._keep(self._trace(_two_rows(arrays), key), key)
        return_memory()
        if rows is not None and not _agrees(core, exported, rows):
            self._forget(key)
            raise ValueError("what was traced with two rows answers others otherwise")
        return exported, key

    def _answer_rows(self, arrays: Mapping[str, Tensor]) -> _Check | None:
        """Ask torch for another number of rows; None where it has no answer either."""
        other = _first_rows(arrays, _CHECK_ROWS)
        try:
            with torch.no_grad():
                answers = self._source.call(self._source.module, other)
        except (RuntimeError, ValueError):
            return None
        return _Check(tuple(other.values()), tuple(a.float() for a in answers))

    def _answer_elsewhere(self, arrays: Mapping[str, Tensor]) -> _Check | None:
        """Ask torch at another size than the traced one; None where it takes no such size."""
        other = _resized(_first_rows(arrays, _CHECK_ROWS), 2 * self._stride, 3 * self._stride)
        try:
            with torch.no_grad():
                answers = self._source.call(self._source.module, other)
        except (RuntimeError, ValueError):  # one that takes squares alone, as DiT does
            return None
        return _Check(tuple(other.values()), tuple(a.float() for a in answers))

    def _trace_small(self, arrays: Mapping[str, Tensor]) -> Any:
        """Trace on a small picture, and leave height and width open."""
        small = _resized(_two_rows(arrays), 2 * self._stride, 2 * self._stride)
        return self._trace(small, self.open_key(row_key(small)))

    @property
    def _stride(self) -> int:
        """What a network divides the sides of a picture by, at the least."""
        levels = self._source.config.get("block_out_channels") or ()
        return max(_LEAST_STRIDE, 2 ** (len(levels) - 1) if levels else 0)

    def _trace(self, example: Mapping[str, Tensor], key: RowShape) -> Any:
        """Trace the torch network with two rows and leave the number of rows open."""
        openvino = import_openvino()
        from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

        own = self._source.module
        own = rearranged(own) if self._is_generator else own
        module = _Positional(own, self._source.call, tuple(example))
        doing = stage("converting", self._role, self._source.num_bytes)
        with doing, _EXPORTING, torch.no_grad(), quiet_tracing():
            decoder = TorchScriptPythonDecoder(
                module,
                example_input=tuple(example.values()),
                trace_kwargs={"check_trace": False},  # or the tracer calls it once more
            )
            model = openvino.convert_model(decoder, example_input=tuple(example.values()))
            shapes = [openvino.PartialShape([-1, *shape]) for _, _, shape in key]
            model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        model.validate_nodes_and_infer_types()
        return model

    def _keep(self, model: Any, key: RowShape) -> Any:
        """Write an export to the folder; then torch's copy of the weights can go."""
        if self._folder is None:
            return model
        path = self._path(key)
        try:
            _write(model, path, self._source.num_bytes)
        except (OSError, RuntimeError) as error:  # the latter is OpenVINO's, of a full disk
            self._tell_no_room(error)
            self._folder = None
            return model
        self._source.let_go()
        _bound(self._folder, self._max_bytes, spare=(path,))
        return path

    def find_made(self, key: RowShape, words: str) -> Path | None:
        """Return the file of what was made of an export, None if there is none that is whole.

        One that is not what was written is deleted, with a warning.

        Args:
            key: The shape that the export is for.
            words: What was made of it.
        """
        if self._folder is None:
            return None
        path = self._path(key, words)
        if not path.is_file():
            return None
        if not _is_sealed(path):
            log.warning("network.damaged", what=self._role, file=path.name)
            _delete(path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return path

    def keep_made(self, model: Any, key: RowShape, words: str, *, num_bytes: int) -> Any:
        """Write what was made of an export to the folder, under a seal.

        Args:
            model: What was made of it.
            key: The shape that the export is for.
            words: What was made of it.
            num_bytes: Bytes of its weights.

        Returns:
            Its file; the network itself where there is no folder, or no room on the disk.
        """
        if self._folder is None:
            return model
        path = self._path(key, words)
        try:
            _write(model, path, num_bytes)
            digests = {suffix: digest_file(path.with_suffix(suffix)) for suffix in (".xml", ".bin")}
            sealed = {"name": path.stem, **digests}
            write_atomically(path.with_suffix(_SEAL), json.dumps(sealed).encode())
        except (OSError, RuntimeError) as error:
            _delete(path)
            self._tell_no_room(error)
            return model
        _bound(self._folder, self._max_bytes, spare=(path, self._path(key)))
        return path

    def _tell_no_room(self, error: Exception) -> None:
        """Note why a network is not kept in the folder."""
        reason = " ".join(str(error).split())[:200]
        self.notes = (
            f"the {self._role} network cannot be kept in {self._folder}: {reason}; "
            "it stays in memory, and the next start converts it again",
        )

    def _forget(self, key: RowShape) -> None:
        """Remember that this network cannot be left open in height and width."""
        self._fixed = True
        if self._folder is not None:
            path = self._path(key)
            path.with_suffix(".fixed").touch()
            _delete(path)

    def _path(self, key: RowShape, *made: str) -> Path:
        """Name an export, or what was made of it, by all that decides what is in it."""
        assert self._folder is not None  # noqa: S101 - asked only where there is one
        versions = [metadata.version(name) for name in ("openvino", "torch")]
        words = [str(FORMAT), self._role, self._source.digest, repr(key), *versions]
        if self._is_generator:
            words.append("rearranged")
        words += made
        return self._folder / (hashlib.sha256("\0".join(words).encode()).hexdigest()[:40] + ".xml")


class _Positional(nn.Module):
    """A module called with named tensors, as a module called with positions."""

    def __init__(self, module: nn.Module, call: Call, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = module
        self._call = call
        self._names = names

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._call(self.module, dict(zip(self._names, tensors, strict=True)))


def _two_rows(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first rows of a call; one alone is doubled."""
    return _first_rows(arrays, EXPORT_ROWS)


def _first_rows(arrays: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Return so many first rows of a call; the first is repeated where there are fewer."""
    return {
        name: t[:count] if len(t) >= count else torch.cat([*[t[:1]] * (count - len(t)), t])
        for name, t in arrays.items()
    }


def _resized(arrays: Mapping[str, Tensor], height: int, width: int) -> dict[str, Tensor]:
    """Put noise of another size in the place of the picture among the inputs."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn((*t.shape[:2], height, width), generator=generator) if t.ndim == 4 else t
        for name, t in arrays.items()
    }


def _agrees(core: Any, exported: Any, check: _Check | None) -> bool:
    """Compare an export at another size than it was traced at with torch's answer there."""
    if check is None:
        return False
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
    try:
        # Compiled for this alone: the copy of the weights that a small size is given is
        # another one than a large size has, and would stay as long as the network.
        model = core.read_model(exported) if isinstance(exported, Path) else exported
        with giving_back(largest_constant(model)):
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            request.infer([t.contiguous().numpy() for t in check.inputs])
        found = [
            torch.as_tensor(request.get_output_tensor(k).data) for k in range(len(check.answers))
        ]
    except RuntimeError:  # a size of the traced picture is written into it
        return False
    return all(
        a.shape == b.shape and float((a - b).abs().max()) <= _AGREES * float(b.abs().max())
        for a, b in zip(found, check.answers, strict=True)
    )


def _is_whole(path: Path) -> bool:
    return path.is_file() and path.with_suffix(".bin").is_file()


def _check_room(folder: Path, num_bytes: int) -> None:
    """Refuse to begin a file that its disk has no room for.

    Raises:
        OSError: If so.
    """
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise OSError(f"it takes {num_bytes >> 20} MB and the disk has {free >> 20} MB left")


def _is_sealed(path: Path) -> bool:
    """Tell whether a description and its weights are those that were written under this name."""
    try:
        sealed: Any = json.loads(path.with_suffix(_SEAL).read_bytes())
        found = {suffix: DIGESTS.digest(path.with_suffix(suffix)) for suffix in (".xml", ".bin")}
    except (OSError, ValueError, WeightsError):
        return False
    return bool(sealed == {"name": path.stem, **found})


def _write(model: Any, path: Path, num_bytes: int) -> None:
    """Write a network of OpenVINO's, whole or not at all.

    Raises:
        OSError, RuntimeError: If it cannot be; the disk may be full.
    """
    openvino = import_openvino()
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(path.parent, num_bytes)
    with atomic_path(path) as partial:
        # OpenVINO names the weights after the description; both move in whole.
        description = partial.with_suffix(".xml")
        try:
            openvino.save_model(model, description, compress_to_fp16=False)
            description.with_suffix(".bin").replace(path.with_suffix(".bin"))
            description.replace(partial)
        finally:
            for left in (description, description.with_suffix(".bin")):
                left.unlink(missing_ok=True)


def _delete(path: Path) -> int:
    """Delete a network's files; return the bytes that they took."""
    freed = 0
    for suffix in _SUFFIXES:
        part = path.with_suffix(suffix)
        with contextlib.suppress(OSError):
            freed += part.stat().st_size
            part.unlink(missing_ok=True)
    return freed


def _bound(folder: Path, max_bytes: int, *, spare: Sequence[Path]) -> None:
    """Delete exports used longest ago until the folder takes no more than its bytes.

    Who has a deleted file open, or mapped, keeps what is in it.
    """
    if not max_bytes:
        return
    with contextlib.suppress(OSError):
        found = [(p.stat().st_mtime_ns, p) for p in folder.glob("*.xml") if p not in spare]
        total = sum(p.stat().st_size for p in folder.iterdir())
        for _, path in sorted(found):
            if total <= max_bytes:
                return
            total -= _delete(path)
