"""Packed weights: layers that keep their weights as a file has them, in four or eight bits.

A linear layer spreads its weight out when it computes and forgets the numbers again, so that
a network takes the memory of its file. Everything else about the layer is that of
:class:`~mezzotint.models.networks.RowLinear`; such networks run in torch on every device.

The formats are those of others: GGUF's blocks (unpacked by diffusers, checked bit by bit
against the package ``gguf``), 8-bit floats with a scale, and the two of bitsandbytes, 4-bit
codes with a scale a block and int8 with a scale a row.

Dimensions: R output features, C input features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from mezzotint.models.networks import RowLinear

__all__ = [
    "Packed",
    "PackedLinear",
    "float8",
    "four_bits",
    "gguf_blocks",
    "int8_rows",
    "pack_linear",
]

Spread = Callable[[Mapping[str, Tensor], tuple[int, ...], torch.dtype], Tensor]
"""Gives back the numbers from tensors by name, the shape that they have and a type for them."""

_BITS = "bits"  # the tensor of a packed weight that holds it; others hold scales
_LARGEST = 127  # of int8
_AT_ONCE = 1 << 22  # numbers spread out at once on a CPU, 16 MB of float32
_AT_ONCE_ELSEWHERE = 1 << 26
_FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight as it is stored.

    Args:
        kind: What it is stored as: ``"Q4_0"``, ``"F8_E4M3"``, ``"nf4"``, ``"int8"``.
        shape: Of what it stands for.
        tensors: Its bytes, and scales as whole numbers of the same bits: what a module is
            converted to must not touch them.
        spread: Gives back the numbers.
    """

    kind: str
    shape: tuple[int, ...]
    tensors: Mapping[str, Tensor]
    spread: Spread

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Return what it stands for, of its shape and in a type."""
        return self.spread(self.tensors, self.shape, dtype)


class PackedLinear(RowLinear):
    """A linear layer with a packed weight; made by :func:`pack_linear` of a plain one."""

    packed: Packed
    kind: torch.dtype

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight, spread out anew for whoever asks. Shape (R, C)."""
        own = {name: self._parameters[name] for name in self.packed.tensors}
        held = {name: tensor.detach() for name, tensor in own.items() if tensor is not None}
        return self.packed.spread(held, self.packed.shape, self.kind)


def pack_linear(layer: nn.Linear, packed: Packed, dtype: torch.dtype) -> None:
    """Turn a linear layer into one that keeps its weight packed, in place.

    Args:
        layer: A plain linear layer; its weight is forgotten, its bias stays.
        packed: Its weight.
        dtype: What the layer computes in.
    """
    del layer.weight
    for name, tensor in packed.tensors.items():
        layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    layer.__class__ = PackedLinear
    assert isinstance(layer, PackedLinear)  # noqa: S101 - the line before
    # The tensors are the layer's parameters, which move from device to device.
    layer.packed = replace(packed, tensors=dict.fromkeys(packed.tensors, torch.empty(0)))
    layer.kind = dtype


def gguf_blocks(kind: str, data: Tensor, shape: tuple[int, ...]) -> Packed:
    """Pack a weight of GGUF's blocks.

    Args:
        kind: Name of the type, ``"Q4_0"``; one that diffusers unpacks.
        data: Its bytes; uint8.
        shape: Of what they stand for.
    """
    return Packed(kind, shape, {_BITS: data}, partial(_spread_blocks, kind=kind))


def _spread_blocks(
    tensors: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, *, kind: str
) -> Tensor:
    from diffusers.quantizers.gguf import utils
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    quant = GGMLQuantizationType[kind]
    unpack: Any = cast("Any", utils).dequantize_functions[quant]
    block, size = GGML_QUANT_SIZES[quant]
    blocks = tensors[_BITS].reshape(-1, size)
    return _piece_by_piece(
        lambda part: unpack(blocks[part], block, size, torch.float32),
        blocks.new_empty((len(blocks), block), dtype=dtype),
    ).reshape(shape)


def _piece_by_piece(read: Callable[[slice], Tensor], numbers: Tensor) -> Tensor:
    """Fill numbers from front to back: what is spread out in between stays small.

    Args:
        read: Gives the numbers of some rows, float32.
        numbers: Where they go.
    """
    most = _AT_ONCE if numbers.device.type == "cpu" else _AT_ONCE_ELSEWHERE
    step = max(most * len(numbers) // max(numbers.numel(), 1), 1)
    for start in range(0, len(numbers), step):
        part = slice(start, start + step)
        numbers[part] = read(part)
    return numbers


def float8(weight: Tensor, scale: Tensor | None) -> Packed:
    """Pack a weight of 8-bit floats.

    Args:
        weight: Shape (R, C), one of torch's 8-bit floats.
        scale: What each number, or each row (R, 1), is multiplied by; None is 1.
    """
    kind = next(name for name, dtype in _FLOAT8.items() if dtype == weight.dtype)
    tensors = {_BITS: weight.view(torch.uint8)}
    if scale is not None:
        tensors["scale"] = _as_whole(scale)
    return Packed(kind, tuple(weight.shape), tensors, partial(_spread_float8, kind=kind))


def _spread_float8(
    tensors: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, *, kind: str
) -> Tensor:
    bits = tensors[_BITS].view(_FLOAT8[kind])
    scale = _as_float(tensors["scale"]) if "scale" in tensors else None

    def read(part: slice) -> Tensor:
        numbers = bits[part].float()
        return numbers if scale is None else numbers * (scale[part] if len(scale) > 1 else scale)

    return _piece_by_piece(read, bits.new_empty(shape, dtype=dtype))


def int8_rows(weight: Tensor, scale: Tensor) -> Packed:
    """Pack int8 rows as bitsandbytes stores them.

    Args:
        weight: Shape (R, C), int8.
        scale: Largest value of each row, shape (R,); 127 stands for it.
    """
    tensors = {_BITS: weight.view(torch.uint8), "scale": _as_whole(scale.reshape(-1, 1))}
    return Packed("int8", tuple(weight.shape), tensors, _spread_int8)


def _spread_int8(
    tensors: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    bits, scale = tensors[_BITS].view(torch.int8), _as_float(tensors["scale"])
    return _piece_by_piece(
        lambda part: bits[part].float() * scale[part] / _LARGEST,
        bits.new_empty(shape, dtype=dtype),
    )


def four_bits(
    kind: str, codes: Tensor, table: Tensor, scale: Tensor, shape: tuple[int, ...], *, block: int
) -> Packed:
    """Pack 4-bit codes as bitsandbytes stores them.

    Args:
        kind: ``"nf4"`` or ``"fp4"``.
        codes: Two to a byte, the first in the upper half; uint8.
        table: What each of the 16 codes stands for.
        scale: What the numbers of each block are multiplied by.
        shape: Of what they stand for.
        block: Numbers in a block; the last one may have fewer.
    """
    scales = {"table": _as_whole(table), "scale": _as_whole(scale.reshape(-1))}
    tensors = {_BITS: codes.reshape(-1), **scales}
    return Packed(kind, shape, tensors, partial(_spread_four_bits, block=block))


def _spread_four_bits(
    tensors: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype, *, block: int
) -> Tensor:
    codes, scale = tensors[_BITS], _as_float(tensors["scale"])
    table, size = _as_float(tensors["table"]), torch.Size(shape).numel()
    numbers = codes.new_empty((len(scale), block), dtype=dtype)  # the last block may be short

    def read(part: slice) -> Tensor:
        some = codes[part.start * block // 2 : part.stop * block // 2]
        found = table[torch.stack([some >> 4, some & 15], dim=-1).reshape(-1).int()]
        rows = torch.nn.functional.pad(found, (0, -len(found) % block)).reshape(-1, block)
        return rows * scale[part, None]

    return _piece_by_piece(read, numbers).reshape(-1)[:size].reshape(shape)


def _as_whole(numbers: Tensor) -> Tensor:
    """Return the bits of float32 numbers as int32."""
    return numbers.float().contiguous().view(torch.int32)


def _as_float(bits: Tensor) -> Tensor:
    """Return the numbers that :func:`_as_whole` was given."""
    return bits.view(torch.float32)
