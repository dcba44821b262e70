"""Import of foreign GAN checkpoints: pickles in, safetensors out, no code run.

A checkpoint is a pickle, and a pickle is a program. Three things stand between it
and this process: its opcodes are read without being executed and may name nothing
but tensor parts; ``torch.load(weights_only=True)`` knows only those as well; and
nothing but plain tensors is kept. Then the layers are recognised by shape and order
(names differ from author to author) and written as a GAN folder of ours.
"""

import io
import itertools
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.models.families.gan import GanConfig, write_gan
from mezzotint.plain import is_dict, is_mapping

__all__ = ["convert_gan", "import_gan", "read_checkpoint", "scan_pickle"]

MAX_CHECKPOINT_BYTES = 4 << 30
_MAX_PICKLE_BYTES = 64 << 20
_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled

_ALLOWED_GLOBALS = re.compile(
    r"collections OrderedDict"
    r"|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|torch (Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch(\.storage)? (Untyped|Typed)Storage"
    r"|torch (float(16|32|64)|bfloat16|int(8|16|32|64)|uint8|bool|Size)"
    r"|models\.utils\.config BaseConfig"  # see InertConfig
)
_LOAD_ERRORS = (EOFError, KeyError, IndexError, AttributeError, OSError, AssertionError)
# Opcodes by which a pickle reaches a callable in another way than GLOBAL.
_REFUSED_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_CONFIG_CLASS = "models.utils.config.BaseConfig"  # pytorch_GAN_zoo saves its settings beside


class InertConfig:
    """Stands where a checkpoint holds its author's settings object; keeps nothing."""

    def __setstate__(self, state: Any) -> None:
        """Forget the settings."""


def scan_pickle(data: bytes, *, source: str, count: int = 1) -> None:
    """Refuse a pickle that names anything but parts of tensors. Executes nothing.

    Args:
        data: One or more pickles behind each other.
        source: What to call it in the error.
        count: How many pickles to read.

    Raises:
        WeightsError: If it would call something else, or is no pickle.
    """
    stream = io.BytesIO(data)
    try:
        for _ in range(count):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and not _ALLOWED_GLOBALS.fullmatch(str(argument)):
                    name = str(argument).replace(" ", ".")
                    raise WeightsError(f"{source} is unsafe: loading it would call {name}; refused")
                if opcode.name in _REFUSED_OPCODES:
                    raise WeightsError(
                        f"{source} is unsafe: its pickle uses {opcode.name}, which weights do not "
                        "need; refused"
                    )
    except (ValueError, IndexError, UnicodeDecodeError, AttributeError) as error:
        raise WeightsError(f"{source} holds no readable pickle: {error}") from None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a torch checkpoint that holds tensors and plain data only.

    Args:
        path: A file of ``torch.save``, of the zip or the older kind.

    Raises:
        WeightsError: If it is something else, or is unsafe in any way.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(_MAX_PICKLE_BYTES)
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from None
    if size > MAX_CHECKPOINT_BYTES:
        raise WeightsError(f"{path} is larger than {MAX_CHECKPOINT_BYTES} bytes, got {size}")
    if start.startswith(b"PK"):
        _scan_zip(path, size)
    elif start.startswith(_LEGACY_MAGIC):
        # magic number, protocol, system, the object, the storage keys; raw data follows
        scan_pickle(start, source=str(path), count=5)
    else:
        raise WeightsError(f"{path} is not a torch checkpoint")
    try:
        with torch.serialization.safe_globals([(InertConfig, _CONFIG_CLASS)]):
            data = torch.load(path, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, ValueError, TypeError, *_LOAD_ERRORS) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path} cannot be read as plain weights: {first[:200]}") from None
    if not is_dict(data):
        raise WeightsError(f"{path} must hold a mapping of tensors, got {type(data).__name__}")
    return dict(data)


def _scan_zip(path: Path, size: int) -> None:
    """Scan every pickle inside a zip checkpoint; compressed entries are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED]
            if packed or sum(e.file_size for e in entries) > size:
                raise WeightsError(f"{path} is no plain torch checkpoint: it is compressed")
            pickles = [e for e in entries if e.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise WeightsError(f"{path} must hold one pickle of names, got {len(pickles)}")
            scan_pickle(archive.read(pickles[0]), source=str(path))
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise WeightsError(f"{path} is a broken checkpoint: {error}") from None


def convert_gan(
    checkpoint: Mapping[str, Any], *, source: str = "the checkpoint", **config: Any
) -> tuple[GanConfig, dict[str, Tensor]]:
    """Recognise a generator by the order and shape of its layers.

    Args:
        checkpoint: Tensors by name, or mappings of them one level down.
        source: What to call it in errors.
        config: Fields of :class:`~mezzotint.models.families.gan.GanConfig` that weights cannot
            tell (``activation``, ``licence``, ``description``, ...).

    Returns:
        The configuration and the state under our names.

    Raises:
        WeightsError: If it is no DCGAN or perceptron generator.
    """
    layers = list(_layers(_find_state(checkpoint, source)))
    kinds = {tensors["weight"].ndim for tensors in layers if "running_mean" not in tensors}
    if kinds == {4}:
        return _convert_dcgan(layers, source, config)
    if kinds == {2}:
        return _convert_mlp(layers, source, config)
    raise WeightsError(f"{source} is neither a DCGAN nor a perceptron: layer ranks {sorted(kinds)}")


def import_gan(path: Path, folder: Path, **config: Any) -> Path:
    """Convert a foreign checkpoint file into a GAN folder.

    Args:
        path: The checkpoint.
        folder: Where to write ``config.json`` and ``generator.safetensors``.
        config: See :func:`convert_gan`.

    Raises:
        WeightsError: If the file is unsafe or holds no generator that we know.
    """
    found, state = convert_gan(read_checkpoint(path), source=str(path), **config)
    return write_gan(folder, found, state)


def _find_state(checkpoint: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Find the generator's tensors, at the top or one level down."""
    if checkpoint and all(isinstance(value, Tensor) for value in checkpoint.values()):
        return {str(key).removeprefix("module."): value for key, value in checkpoint.items()}
    nested = {
        str(key): value
        for key, value in checkpoint.items()
        if is_mapping(value)
        and value
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    }
    generators = [
        key
        for key in nested
        if re.search(r"(^|_)(net)?g(_|$)|generator", key, re.IGNORECASE)
        and "opt" not in key.lower()
    ]
    averaged = [key for key in generators if re.search("ema|avg", key, re.IGNORECASE)]
    chosen = averaged or generators or list(nested)
    if len(chosen) != 1:
        listed = ", ".join(map(str, checkpoint)) or "nothing"
        raise WeightsError(f"{source}: cannot tell which entry is the generator among {listed}")
    return _find_state(nested[chosen[0]], source)


def _layers(state: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of each layer, in the order they were defined."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        prefix, _, leaf = key.rpartition(".")
        layers.setdefault(prefix, {})[leaf] = tensor
    yield from (tensors for tensors in layers.values() if "weight" in tensors)


def _pair(layers: list[dict[str, Tensor]], source: str) -> list[tuple[dict[str, Tensor], ...]]:
    """Put every batch normalisation behind the layer it follows."""
    groups: list[list[dict[str, Tensor]]] = []
    for tensors in layers:
        if "running_mean" not in tensors:
            groups.append([tensors])
        elif groups and len(groups[-1]) == 1:
            groups[-1].append(tensors)
        else:
            raise WeightsError(f"{source}: a batch normalisation stands where no layer precedes it")
    normed = [len(group) == 2 for group in groups]
    if len(groups) < 2 or normed[-1] or (any(normed) and not all(normed[:-1])):
        raise WeightsError(f"{source}: layers and normalisations do not alternate as in a DCGAN")
    return [tuple(group) for group in groups]


def _rename(
    groups: list[tuple[dict[str, Tensor], ...]], *, batch_norm: bool, bias: bool
) -> dict[str, Tensor]:
    """Name the tensors as :class:`~mezzotint.models.families.gan.Generator` does."""
    stride = 3 if batch_norm else 2  # layer, normalisation, activation
    state: dict[str, Tensor] = {}
    for number, group in enumerate(groups):
        for place, tensors in enumerate(group):
            for leaf, tensor in tensors.items():
                state[f"main.{number * stride + place}.{leaf}"] = tensor
        if bias and "bias" not in group[0]:
            raise WeightsError("some layers have a bias and some have none")
    return state


def _convert_dcgan(
    layers: list[dict[str, Tensor]], source: str, config: dict[str, Any]
) -> tuple[GanConfig, dict[str, Tensor]]:
    groups = _pair(layers, source)
    shapes = [tuple(group[0]["weight"].shape) for group in groups]
    chained = all(a[1] == b[0] for a, b in itertools.pairwise(shapes))
    if not chained or any(shape[2:] != (4, 4) for shape in shapes):
        raise WeightsError(
            f"{source} is no DCGAN generator: expected a chain of 4x4 transposed convolutions, "
            f"got shapes {shapes}"
        )
    batch_norm, bias = len(groups[0]) == 2, "bias" in groups[0][0]
    channels = [shape[1] for shape in shapes[:-1]]
    values: dict[str, Any] = {
        "architecture": "dcgan",
        "latent_size": shapes[0][0],
        "image_size": 4 * 2 ** len(channels),
        "image_channels": shapes[-1][1],
        "channels": tuple(channels),
        "batch_norm": batch_norm,
        "bias": bias,
        **config,
    }
    return GanConfig(**values), _rename(groups, batch_norm=batch_norm, bias=bias)


def _convert_mlp(
    layers: list[dict[str, Tensor]], source: str, config: dict[str, Any]
) -> tuple[GanConfig, dict[str, Tensor]]:
    groups = _pair(layers, source)
    shapes = [tuple(group[0]["weight"].shape) for group in groups]
    if not all(a[0] == b[1] for a, b in itertools.pairwise(shapes)):
        raise WeightsError(f"{source} is no perceptron: layers do not fit, shapes {shapes}")
    pixels = shapes[-1][0]
    channels = next((c for c in (1, 3) if round((pixels / c) ** 0.5) ** 2 * c == pixels), 0)
    if not channels:
        raise WeightsError(f"{source}: {pixels} outputs are no square picture")
    batch_norm, bias = len(groups[0]) == 2, "bias" in groups[0][0]
    values: dict[str, Any] = {
        "architecture": "mlp",
        "latent_size": shapes[0][1],
        "image_size": round((pixels / channels) ** 0.5),
        "image_channels": channels,
        "channels": tuple(shape[0] for shape in shapes[:-1]),
        "batch_norm": batch_norm,
        "bias": bias,
        "activation": "leaky_relu",
        **config,
    }
    return GanConfig(**values), _rename(groups, batch_norm=batch_norm, bias=bias)
