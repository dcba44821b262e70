"""Packed files: networks whose files hold quantized weights, or the names of their first authors.

What people have on disk beside folders as diffusers writes them: GGUF files, 8-bit floats
with scales, weights of bitsandbytes, a transformer in one file of the layout that it was
published in. Weights stay as they are stored (:mod:`mezzotint.models.backends.packed`) and
are named as diffusers names them; the translation of names is diffusers' own.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.models.backends.mapped import giving_back
from mezzotint.models.backends.packed import Packed, float8, four_bits, gguf_blocks, int8_rows
from mezzotint.models.formats.filling import empty_network, fill
from mezzotint.models.parts import SCALES, SafetensorsHeader, find_weights, read_header

__all__ = [
    "Stored", "apply_scales", "build_packed", "find_stored", "plain_state", "read_stored",
]  # fmt: skip

_PUBLISHED = re.compile(r"(diffusion_pytorch_model|model)\b.*")
_FLOAT8 = ("F8_E4M3", "F8_E5M2")
_BNB_STATE = re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$")
_BNB_ROWS = ".SCB"
_UNPACKED = ("F32", "F16", "BF16")  # types of GGUF that are none
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
    found = [header for header in headers if header is not None]
    names = {name: kind for header in found for name, (kind, _) in header.tensors.items()}
    kind = next((match[1] for name in names if (match := _BNB_STATE.search(name))), "")
    if not kind and any(name.endswith(_BNB_ROWS) for name in names):
        kind = "int8"
    if not kind and any(name.endswith(SCALES) for name in names):
        kind = next((kind for kind in names.values() if kind in _FLOAT8), "")
    if not kind and _PUBLISHED.fullmatch(files[0].name):
        return None
    if not kind:
        kind = next((header.stored for header in found if header.stored in _FLOAT8), "")
    return Stored(kind, sum(header.data_bytes for header in found), _count(found, names))


def _count(headers: Sequence[SafetensorsHeader], names: Mapping[str, str]) -> int:
    """Count the numbers that weights stand for: two in a byte of 4-bit codes."""
    codes = {name[: match.start()] for name in names if (match := _BNB_STATE.search(name))}
    return sum(
        torch.Size(shape).numel() * (2 if name in codes else 1)
        for header in headers
        for name, (_, shape) in header.tensors.items()
        if not any(name.startswith(f"{base}.") for base in codes if base in name)
    )


def _gguf(path: Path) -> Any:
    """Open a GGUF file.

    Raises:
        WeightsError: If the package is missing, or the file is corrupt.
    """
    if find_spec("gguf") is None:
        raise WeightsError(
            f"{path} needs the package gguf, and it is not installed: pip install gguf"
        )
    from gguf import GGUFReader

    try:
        return GGUFReader(str(path))
    except (*_FAILURES, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path} is no whole GGUF file ({reason}); copy or download it again"
        ) from None


def _read_gguf(path: Path) -> Stored:
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    counts: dict[str, int] = {}
    total = numbers = 0
    for tensor in _gguf(path).tensors:
        kind = tensor.tensor_type
        if kind.name not in _UNPACKED and kind not in SUPPORTED_GGUF_QUANT_TYPES:
            known = ", ".join(sorted(known.name for known in SUPPORTED_GGUF_QUANT_TYPES))
            raise WeightsError(f"{path}: {tensor.name} is of type {kind.name}; read are {known}")
        total += int(tensor.n_bytes)
        numbers += int(tensor.n_elements)
        if kind.name not in _UNPACKED:
            counts[kind.name] = counts.get(kind.name, 0) + int(tensor.n_bytes)
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
            state = _packed_blocks(_named(_gguf_state(files[0]), class_name, plain, wanted))
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
    state = _packed_scales(_packed_bnb(dict(_tensors(files)), where), where)
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


def _tensors(files: Sequence[Path]) -> Iterator[tuple[str, Tensor]]:
    """Read all tensors of safetensors files into memory of our own."""
    from safetensors import safe_open

    for path in files:
        with safe_open(str(path), framework="pt") as file:
            for name in read_header(path).tensors:
                yield name, file.get_tensor(name).clone()


def _named(
    state: dict[str, Any], class_name: str, config: Mapping[str, Any], wanted: set[str]
) -> dict[str, Any]:
    """Name tensors as the class does, by diffusers' own translation."""
    if wanted <= set(state):
        return state
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    known: dict[str, Any] = SINGLE_FILE_LOADABLE_CLASSES.get(class_name, {})
    if "checkpoint_mapping_fn" not in known:
        return state
    return known["checkpoint_mapping_fn"](checkpoint=dict(state), config=dict(config))


def _gguf_state(path: Path) -> dict[str, Any]:
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    with giving_back(path):  # each tensor is copied out of the mapped file
        return load_gguf_checkpoint(str(path))


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
            found[name] = utils.dequantize_gguf_tensor(value)
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
    if any(_BNB_STATE.search(name) or name.endswith(_BNB_ROWS) for name in state):
        return _packed_bnb(state, where)
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
    weights = _named(plain, class_name, config, wanted)
    scales = _named(rows, class_name, config, wanted)
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
    for name in state:
        if not name.endswith(SCALES):
            continue
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
        found[f"{base}.weight"] = float8(weight, by_row)
        for extra in ("scale_input", "input_scale"):  # of 8-bit arithmetic, which is not used
            found.pop(f"{base}.{extra}", None)
    return {name: value for name, value in found.items() if not name.endswith("scaled_fp8")}


def _is_float8(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.dtype in (
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )


def _fits(weight: Any, scale: Tensor) -> bool:
    """Tell whether a scale is one for all of a weight of 8-bit floats, or one for each row."""
    return _is_float8(weight) and weight.ndim > 1 and scale.numel() in (1, len(weight))


def _packed_bnb(state: Mapping[str, Tensor], where: object) -> dict[str, Tensor | Packed]:
    """Put the tensors of each weight of bitsandbytes together."""
    found: dict[str, Tensor | Packed] = {}
    rest = dict(state)
    for name in state:
        if match := _BNB_STATE.search(name):
            base = name.removesuffix(match[0])
            mine = {k: rest.pop(k) for k in list(rest) if k == base or k.startswith(f"{base}.")}
            found[base] = _four_bits(match[1], base, mine, name, where)
        elif name.endswith(_BNB_ROWS):
            base = name.removesuffix(_BNB_ROWS)
            found[f"{base}.weight"] = int8_rows(rest.pop(f"{base}.weight"), rest.pop(name))
            rest.pop(f"{base}.weight_format", None)
    return {**rest, **found}


def _four_bits(
    kind: str, base: str, mine: Mapping[str, Tensor], state: str, where: object
) -> Packed:
    """Read one weight of 4-bit codes; scales may be quantized themselves."""
    about = json.loads(bytes(mine[state].tolist()))
    scale = mine[f"{base}.absmax"]
    if scale.dtype == torch.uint8:
        table = mine[f"{base}.nested_quant_map"].float()
        blocks = mine[f"{base}.nested_absmax"].float()
        size = int(about["nested_blocksize"])
        spread = blocks.repeat_interleave(size)[: scale.numel()]
        scale = table[scale.int()].reshape(-1) * spread + float(about["nested_offset"])
    if mine[base].dtype != torch.uint8:
        raise WeightsError(f"{where}: {base} holds 4-bit codes in {mine[base].dtype}, not bytes")
    return four_bits(
        kind,
        mine[base],
        mine[f"{base}.quant_map"],
        scale,
        tuple(int(n) for n in about["shape"]),
        block=int(about["blocksize"]),
    )
