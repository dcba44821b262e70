"""Packed files: networks whose files hold quantized weights, or the names of their first authors.

What people have on disk beside folders as diffusers writes them: GGUF files, 8-bit floats
with scales, weights of bitsandbytes, a transformer in one file of the layout that it was
published in. Weights stay as they are stored (:mod:`mezzotint.models.backends.packed`) and
are named as diffusers names them; the translation of names is diffusers' own.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.models.backends.packed import Packed, float8, gguf_blocks
from mezzotint.models.formats.bitsandbytes_weights import (
    bitsandbytes_kind,
    code_numbers,
    pack_bitsandbytes,
)
from mezzotint.models.formats.filling import empty_network, fill
from mezzotint.models.formats.gguf_header import GgufTensor, read_gguf_header
from mezzotint.models.parts import (
    SCALES,
    STORED_BYTES,
    SafetensorsHeader,
    find_weights,
    read_header,
)

__all__ = [
    "Stored", "apply_scales", "build_packed", "find_stored", "named_as_class", "plain_state",
    "read_stored",
]  # fmt: skip

_COMFY = "model.diffusion_model."  # before the names of a transformer in ComfyUI's files
_PUBLISHED = re.compile(r"(diffusion_pytorch_model|model)\b.*")
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_TOO_LARGE = {torch.float8_e4m3fn: 0x76, torch.float8_e5m2: 0x77}
"""Bits of half the largest number: what was scaled reaches it, no weight does."""
_FLOATS = {"F32": torch.float32, "F16": torch.float16}  # types of GGUF that torch has
_UNPACKED = (*_FLOATS, "BF16")
_FAILURES = (ValueError, RuntimeError, LookupError, TypeError, AttributeError, OSError)


@dataclass(frozen=True, slots=True)
class Stored:
    """How a network is stored, where it is not as diffusers writes it.

    Args:
        kind: Type of most weights: ``"Q4_0"``, ``"F8_E4M3"``, ``"nf4"``, ``"int8"``; ``""``
            where only names are others.
        num_bytes: Bytes of all weights.
        num_weights: How many numbers they stand for.
    """

    kind: str
    num_bytes: int
    num_weights: int


def find_stored(
    folder: Path, *, library: str, variant: str | None = None
) -> tuple[list[Path], str | None]:
    """Find the weights of one network's folder, however they are stored.

    Args:
        folder: Folder with a ``config.json`` and weights.
        library: Whose class it is.
        variant: See :func:`~mezzotint.models.parts.find_weights`.

    Raises:
        WeightsError: If there are none, or two that could be meant.
    """
    packed = sorted(folder.glob("*.gguf"))
    others = sorted(folder.glob("*.safetensors"))
    named = [path for path in others if not _PUBLISHED.fullmatch(path.name)]
    if packed and (others or len(packed) > 1):
        second = (packed[1:] or others)[0]
        raise WeightsError(
            f"{folder} holds both {packed[0].name} and {second.name}; leave the one to draw with"
        )
    if packed and library != "diffusers":
        raise WeightsError(
            f"{packed[0]}: GGUF is read for denoisers of diffusers, not for text encoders of "
            f"{library}; put safetensors in its place"
        )
    if packed:
        return packed, None
    if variant is None and library == "diffusers" and len(others) == 1 and named:
        return named, None
    return find_weights(folder, variant=variant)


def read_stored(
    files: Sequence[Path], headers: Sequence[SafetensorsHeader | None]
) -> Stored | None:
    """Tell how a network is stored; None if it is as diffusers and transformers write it.

    Args:
        files: Its files.
        headers: Of each; None for a GGUF file.

    Raises:
        WeightsError: If a GGUF file cannot be read here, or is corrupt.
    """
    if files[0].suffix == ".gguf":
        return _read_gguf(files[0])
    found = [_of_network(header) for header in headers if header is not None]
    names = {name: kind for header in found for name, (kind, _) in header.tensors.items()}
    kind = bitsandbytes_kind(names)
    if not kind and any(name.endswith(SCALES) for name in names):
        kind = next((kind for kind in names.values() if kind in _FLOAT8), "")
    if not kind and _PUBLISHED.fullmatch(files[0].name):
        return None
    if not kind:
        kind = next((header.stored for header in found if header.stored in _FLOAT8), "")
    shapes = {name: shape for header in found for name, (_, shape) in header.tensors.items()}
    return Stored(kind, sum(header.data_bytes for header in found), code_numbers(shapes))


def _gguf_tensors(path: Path) -> list[GgufTensor]:
    """Read where a GGUF file's tensors lie; all are of types that can be unpacked.

    Raises:
        WeightsError: If the package is missing, the file is corrupt, or there is another type.
    """
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    tensors = read_gguf_header(path)
    known = {kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES}
    for tensor in tensors:
        if tensor.kind not in known and tensor.kind not in _UNPACKED:
            read = ", ".join(sorted(known))
            raise WeightsError(f"{path}: {tensor.name} is of type {tensor.kind}; read are {read}")
    return tensors


def _read_gguf(path: Path) -> Stored:
    counts: dict[str, int] = {}
    total = numbers = 0
    for tensor in _gguf_tensors(path):
        total += tensor.num_bytes
        numbers += math.prod(tensor.shape)
        if tensor.kind not in _UNPACKED:
            counts[tensor.kind] = counts.get(tensor.kind, 0) + tensor.num_bytes
    if not total:
        raise WeightsError(f"{path} holds no weights")
    return Stored(max(counts, key=lambda kind: counts[kind], default=""), total, numbers)


def build_packed(
    class_name: str,
    config: Mapping[str, Any],
    files: Sequence[Path],
    dtype: torch.dtype,
    *,
    where: object,
) -> nn.Module:
    """Build a network of diffusers from packed files; its linear layers stay packed.

    Args:
        class_name: Its class.
        config: Its configuration.
        files: What :func:`find_stored` found; the caller watches them.
        dtype: What it computes in.
        where: Its folder, for messages.

    Raises:
        WeightsError: If the files are not of this class, or are packed in an unknown way.
    """
    plain = {k: v for k, v in config.items() if k != "quantization_config"}
    module = empty_network(class_name, plain, where=where)
    wanted = set(module.state_dict())
    try:
        if files[0].suffix == ".gguf":
            state = _packed_blocks(named_as_class(_gguf_state(files[0]), class_name, plain, wanted))
        else:
            state = _packed_tensors(dict(_tensors(files)), class_name, plain, wanted, where)
    except _FAILURES as error:
        if isinstance(error, WeightsError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise WeightsError(f"{where}: weights are not those of a {class_name}: {reason}") from error
    return fill(module, state, dtype, where=where)


def plain_state(files: Sequence[Path], dtype: torch.dtype, *, where: object) -> dict[str, Tensor]:
    """Read packed files of a network in its own names and spread all of it out.

    Args:
        files: safetensors files.
        dtype: What floats are given in.
        where: Their folder, for messages.

    Raises:
        WeightsError: If they are packed in an unknown way.
    """
    state = _packed_scales(pack_bitsandbytes(dict(_tensors(files)), where), where)
    return {
        name: given.numbers(dtype)
        if isinstance(given, Packed)
        else given.to(dtype if given.is_floating_point() else given.dtype)
        for name, given in state.items()
    }


def apply_scales(state: Mapping[str, Tensor], *, where: object) -> dict[str, Tensor]:
    """Multiply 8-bit floats by the scales beside them.

    Args:
        state: Tensors by name.
        where: The file, for messages.

    Returns:
        The same without scales; what had one as float32.

    Raises:
        WeightsError: If a scale fits no weight.
    """
    given = _packed_scales(state, where)
    return {k: v.numbers(torch.float32) if isinstance(v, Packed) else v for k, v in given.items()}


def _of_network(header: SafetensorsHeader) -> SafetensorsHeader:
    """Return what a file holds of its network; one of ComfyUI may hold a whole model."""
    own = {n: entry for n, entry in header.tensors.items() if n.startswith(_COMFY)}
    if not own:
        return header
    sizes = (math.prod(shape) * STORED_BYTES.get(kind, 4) for kind, shape in own.values())
    return replace(header, tensors=own, data_bytes=sum(sizes))


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Read a network's tensors of safetensors files into memory of our own, without prefix."""
    from safetensors import SafetensorError, safe_open

    for path in files:
        names = _of_network(read_header(path)).tensors
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in names:
                    yield name.removeprefix(_COMFY), file.get_tensor(name).clone()
        except SafetensorError as error:
            raise WeightsError(f"{path} cannot be read: {str(error)[:200]}") from None


def named_as_class(
    state: dict[str, Any], class_name: str, config: Mapping[str, Any], wanted: set[str]
) -> dict[str, Any]:
    """Name tensors as the class does, by diffusers' own translation.

    Those of ComfyUI's files have a prefix, which several translations do not know.

    Args:
        state: By the names of their file.
        class_name: Of diffusers.
        config: Of the network.
        wanted: The names of the class.
    """
    state = {name.removeprefix(_COMFY): tensor for name, tensor in state.items()}
    if wanted <= set(state):
        return state
    from diffusers.loaders import single_file_model

    loadable: dict[str, Any] = cast("Any", single_file_model).SINGLE_FILE_LOADABLE_CLASSES
    known: dict[str, Any] = loadable.get(class_name, {})
    if "checkpoint_mapping_fn" not in known:
        return state
    return known["checkpoint_mapping_fn"](checkpoint=dict(state), config=dict(config))


def _gguf_state(path: Path) -> dict[str, Any]:
    """Read a GGUF file's tensors into memory of our own: floats, or diffusers' parameters."""
    from diffusers.quantizers.gguf import utils
    from gguf import GGMLQuantizationType

    state: dict[str, Any] = {}
    kept: Any = utils.GGUFParameter
    with path.open("rb") as stream:
        for tensor in _gguf_tensors(path):
            data = torch.empty(tensor.num_bytes, dtype=torch.uint8)
            stream.seek(tensor.start)
            into: Any = data.numpy()
            if stream.readinto(into) != tensor.num_bytes:
                raise WeightsError(f"{path} was cut while it was read; copy or download it again")
            if tensor.kind in _FLOATS:
                state[tensor.name] = data.view(_FLOATS[tensor.kind]).reshape(tensor.shape)
            else:
                rows = data.reshape(*tensor.shape[:-1], tensor.row_bytes)
                kind = GGMLQuantizationType[tensor.kind]
                state[tensor.name] = kept(rows, quant_type=kind)
    return state


def _packed_blocks(state: Mapping[str, Any]) -> dict[str, Tensor | Packed]:
    """Take the blocks out of diffusers' own parameters."""
    from diffusers.quantizers.gguf import utils

    kept: Any = utils.GGUFParameter
    found: dict[str, Tensor | Packed] = {}
    for name, value in state.items():
        kind = value.quant_type.name if isinstance(value, kept) else ""
        if not kind:
            found[name] = value
        elif kind in _UNPACKED:
            found[name] = cast("Any", utils).dequantize_gguf_tensor(value)
        else:
            data = value.as_tensor().detach().contiguous()
            found[name] = gguf_blocks(kind, data, tuple(value.quant_shape))
    return found


def _packed_tensors(
    state: dict[str, Tensor],
    class_name: str,
    config: Mapping[str, Any],
    wanted: set[str],
    where: object,
) -> Mapping[str, Tensor | Packed]:
    """Pack what a safetensors file holds quantized, in the class's names.

    Where names are translated, matrices are split and joined by their rows; scales, one for
    each row, go the same way.
    """
    if bitsandbytes_kind(state):
        return pack_bitsandbytes(state, where)
    scaled = {
        name: float8(value, None)
        if isinstance(value, Tensor) and _is_float8(value) and value.ndim > 1
        else value
        for name, value in _packed_scales(state, where).items()
    }
    if wanted <= set(scaled):
        return scaled
    plain = {k: v for k, v in state.items() if k in scaled}
    rows = {name: _row_scales(scaled[name], plain[name]) for name in plain}
    weights = named_as_class(plain, class_name, config, wanted)
    scales = named_as_class(rows, class_name, config, wanted)
    return {
        name: float8(value.contiguous(), scales[name].contiguous())
        if value.ndim > 1 and _is_float8(value)
        else value
        for name, value in weights.items()
    }


def _row_scales(packed: Tensor | Packed, weight: Tensor) -> Tensor:
    """Return the scale of each row, (R, 1, ...), for 8-bit floats; else the weight."""
    if not isinstance(packed, Packed):
        return weight
    scale = packed.tensors.get("scale")
    ones = torch.ones(len(weight), *(1 for _ in weight.shape[1:]))
    return ones if scale is None else ones * scale.view(torch.float32)


def _packed_scales(
    state: Mapping[str, Tensor | Packed], where: object
) -> dict[str, Tensor | Packed]:
    """Put 8-bit floats and the scales beside them together."""
    found = dict(state)
    scales = [name for name in state if name.endswith(SCALES)]
    for name in scales:
        base = name.removesuffix(SCALES[0]).removesuffix(SCALES[1])
        weight, scale = found.get(f"{base}.weight"), found.pop(name)
        if not isinstance(scale, Tensor) or not _fits(weight, scale):
            kind = str(getattr(weight, "dtype", "nothing")).removeprefix("torch.")
            raise WeightsError(
                f"{where}: {name} scales {kind} of a kind that is not read; read are 8-bit "
                "floats with one scale, or one for each row"
            )
        assert isinstance(weight, Tensor)  # noqa: S101 - it fits
        by_row = scale.float().reshape(-1, *(1 for _ in weight.shape[1:]))
        if not by_row.isfinite().all():
            raise WeightsError(f"{where}: {name} has NaN or infinity")
        if _forgets(weight, by_row):
            raise WeightsError(f"{where}: {name} is 0 where {base}.weight is not")
        found[f"{base}.weight"] = float8(weight, by_row)
        for extra in ("scale_input", "input_scale"):  # of 8-bit arithmetic, which is not used
            found.pop(f"{base}.{extra}", None)
    if scales:
        _refuse_unscaled(found, where)
    return {name: value for name, value in found.items() if not name.endswith("scaled_fp8")}


def _is_float8(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype in (
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )


def _fits(weight: Any, scale: Tensor) -> bool:
    """Tell whether a scale is one for all of a weight of 8-bit floats, or one for each row."""
    if not _is_float8(weight) or weight.ndim < 2 or not scale.is_floating_point():
        return False
    return scale.numel() == 1 or (scale.numel() == len(weight) == len(scale))


def _forgets(weight: Tensor, scale: Tensor) -> bool:
    """Tell whether scales of 0, (1, 1, ...) or (R, 1, ...), make nothing of numbers."""
    if scale.all():
        return False
    rows = weight.view(torch.uint8)[scale.flatten() == 0] if len(scale) > 1 else weight
    return bool((rows.view(torch.uint8) & 0x7F).any())


def _refuse_unscaled(state: Mapping[str, Tensor | Packed], where: object) -> None:
    """Refuse 8-bit floats that were scaled and lack their scale; others have theirs.

    A file may hold matrices as they are beside scaled ones.
    """
    for name, weight in state.items():
        if not isinstance(weight, Tensor) or not _is_float8(weight) or weight.ndim < 2:
            continue
        bits = weight.view(torch.uint8) & 0x7F
        if bits.numel() and int(bits.max()) >= _TOO_LARGE[weight.dtype]:
            raise WeightsError(
                f"{where}: {name} lacks its scale: it reaches the largest numbers of "
                f"{str(weight.dtype).removeprefix('torch.')}, and other weights have scales"
            )
