"""Exporting: a torch network becomes a file that OpenVINO runs, traced once for all sizes.

A network over pictures or latents is traced on a small one and left open in height and
width, so that one file and one compiled network serve every size: measured on U-Nets and
autoencoders, bits and speed are those of a network made for one size. Whether a network
can be left open is not taken on trust: its answer at another size, and to another number of
rows, is compared with torch's. One that is made for one size is compared at another number of
rows unless it is large or an autoencoder: a call of torch at that size would delay the first
picture.

The files lie in a folder whose bytes are bounded; who was used longest ago goes first.

Dimensions: R rows, h and w rows and columns of a picture or of latents.
"""

import contextlib
import hashlib
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

from mezzotint.files import atomic_path
from mezzotint.models.backends.doubling import rearranged
from mezzotint.models.backends.mapped import giving_back, return_memory
from mezzotint.models.backends.quiet import import_openvino, quiet_tracing
from mezzotint.models.networks import Call, TorchNetwork
from mezzotint.observe.stages import stage

__all__ = ["Exporter", "RowShape", "row_key"]

FORMAT = 2  # raise when an exported network of before can no longer be used
EXPORT_ROWS = 2  # a batch of one may be folded into the graph as a constant
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
        openvino = import_openvino()

        path = self._path(key)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            _check_room(self._folder, self._source.num_bytes)
            with atomic_path(path) as partial:
                # OpenVINO names the weights after the description; both move in whole.
                description = partial.with_suffix(".xml")
                try:
                    openvino.save_model(model, description, compress_to_fp16=False)
                    description.with_suffix(".bin").replace(path.with_suffix(".bin"))
                    description.replace(partial)
                finally:
                    for suffix in (".xml", ".bin"):
                        description.with_suffix(suffix).unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:  # the latter is OpenVINO's, of a full disk
            reason = " ".join(str(error).split())[:200]
            self.notes = (
                f"the {self._role} network cannot be kept in {self._folder}: {reason}; "
                "it stays in memory, and the next start converts it again",
            )
            self._folder = None
            return model
        self._source.let_go()
        _bound(self._folder, self._max_bytes, spare=path)
        return path

    def _forget(self, key: RowShape) -> None:
        """Remember that this network cannot be left open in height and width."""
        self._fixed = True
        if self._folder is not None:
            path = self._path(key)
            path.with_suffix(".fixed").touch()
            for suffix in (".xml", ".bin"):
                path.with_suffix(suffix).unlink(missing_ok=True)

    def _path(self, key: RowShape) -> Path:
        """Name an export by all that decides what is in it."""
        assert self._folder is not None  # noqa: S101 - asked only where there is one
        versions = [metadata.version(name) for name in ("openvino", "torch")]
        words = [str(FORMAT), self._role, self._source.digest, repr(key), *versions]
        if self._is_generator:
            words.append("rearranged")
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
        with giving_back(exported.with_suffix(".bin") if isinstance(exported, Path) else None):
            request = core.compile_model(exported, "CPU", settings).create_infer_request()
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


def _bound(folder: Path, max_bytes: int, *, spare: Path) -> None:
    """Delete exports used longest ago until the folder takes no more than its bytes.

    Who has a deleted file open, or mapped, keeps what is in it.
    """
    if not max_bytes:
        return
    with contextlib.suppress(OSError):
        found = [(p.stat().st_mtime_ns, p) for p in folder.glob("*.xml") if p != spare]
        total = sum(p.stat().st_size for p in folder.iterdir())
        for _, path in sorted(found):
            if total <= max_bytes:
                return
            for suffix in (".xml", ".bin"):
                part = path.with_suffix(suffix)
                total -= part.stat().st_size
                part.unlink(missing_ok=True)
