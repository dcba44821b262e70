"""Weights of bitsandbytes in safetensors files: tensors beside each weight, held together.

What a file says of itself (shapes, blocks, counts) is checked here against the tensors that
are there: a layer spreads its weight out at every call, on a device whose process does not
survive an index out of its table.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.models.backends.packed import Packed, four_bits, int8_rows
from mezzotint.plain import is_dict, is_list

__all__ = ["bitsandbytes_kind", "code_numbers", "pack_bitsandbytes"]

_STATE = re.compile(r"\.quant_state\.bitsandbytes__(nf4|fp4)$")
_BESIDE = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
_ROWS, _FORMAT = ".SCB", ".weight_format"
_BLOCKS = tuple(1 << power for power in range(5, 13))
"""Numbers in a block, as bitsandbytes allows them: 32 to 4096."""
_CODES, _NESTED_CODES = 16, 256
_MAX_STATE_BYTES = 1 << 16
_MAX_DIMENSIONS = 8
_LARGEST = torch.finfo(torch.float32).max


def bitsandbytes_kind(names: Iterable[str]) -> str:
    """Tell what bitsandbytes made of weights.

    Args:
        names: Of a file's tensors.

    Returns:
        ``"nf4"``, ``"fp4"`` or ``"int8"``; ``""`` where it made none of them.
    """
    found = list(names)
    kind = next((match[1] for name in found if (match := _STATE.search(name))), "")
    return kind or ("int8" if any(name.endswith(_ROWS) for name in found) else "")


def code_numbers(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Count the numbers that weights stand for: two in a byte of 4-bit codes.

    Args:
        shapes: Of a network's tensors by name; those beside codes are not counted.
    """
    states = {name: match for name in shapes if (match := _STATE.search(name))}
    codes = {name[: match.start()] for name, match in states.items()}
    beside = {f"{base}{end}" for base in codes for end in _BESIDE} | set(states)
    return sum(
        math.prod(shape) * (2 if name in codes else 1)
        for name, shape in shapes.items()
        if name not in beside
    )


def pack_bitsandbytes(state: Mapping[str, Tensor], where: object) -> dict[str, Tensor | Packed]:
    """Put the tensors of each weight of bitsandbytes together.

    Args:
        state: Tensors by name.
        where: Their file or folder, for messages.

    Returns:
        Weights by name, packed where they were quantized, and whatever else there was.

    Raises:
        WeightsError: If what belongs to a weight is missing, or has other counts than it says.
    """
    rest, found = dict(state), dict[str, Tensor | Packed]()
    for name in state:
        if match := _STATE.search(name):
            base = name[: match.start()]
            mine = {end: rest.pop(f"{base}{end}", None) for end in ("", *_BESIDE)}
            found[base] = _FourBits(base, mine, where).packed(match[1], rest.pop(name))
        elif name.endswith(_ROWS):
            base = f"{name.removesuffix(_ROWS)}.weight"
            kind = rest.pop(f"{name.removesuffix(_ROWS)}{_FORMAT}", None)
            found[base] = _int8(base, rest.pop(base, None), rest.pop(name), kind, where)
    return {**rest, **found}


def _int8(
    name: str, weight: Tensor | None, scale: Tensor, kind: Tensor | None, where: object
) -> Packed:
    """Hold one weight of int8 rows together."""
    if weight is None or weight.dtype != torch.int8 or weight.ndim != 2:
        raise WeightsError(f"{where}: {name} is no int8 matrix, and has scales ({_ROWS})")
    if kind is not None and kind.count_nonzero():
        raise WeightsError(f"{where}: {name} does not lie row by row; save it anew")
    _numbers(name, _ROWS, scale, len(weight), where)
    return int8_rows(weight, scale)


def _numbers(name: str, end: str, given: Tensor | None, count: int, where: object) -> Tensor:
    """Return finite numbers beside a weight, float32, if there are as many as there must be."""
    if given is None or not given.is_floating_point() or given.numel() != count:
        got = "nothing" if given is None else f"{given.numel()} of {_kind(given)}"
        raise WeightsError(f"{where}: {name} needs {count} floats in {end}, got {got}")
    numbers = given.float().reshape(-1)
    if not numbers.isfinite().all():
        raise WeightsError(f"{where}: {name} has NaN or infinity in {end}")
    return numbers


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class _FourBits:
    """One weight of 4-bit codes and what lies beside it.

    Args:
        name: Of the weight.
        mine: Its tensors by the ends of their names; ``""`` for its codes.
        where: Their file, for messages.
    """

    def __init__(self, name: str, mine: Mapping[str, Tensor | None], where: object) -> None:
        self.name, self.mine, self.where = name, mine, where

    def packed(self, kind: str, state: Tensor) -> Packed:
        """Pack it, by the state that it was saved with; scales may be quantized themselves."""
        about = self.read_state(state)
        shape, block = self.shape(about), self.block(about, "blocksize")
        numbers = math.prod(shape)
        codes = self.bytes("", -(-numbers // 2))
        table = self.floats(".quant_map", _CODES)
        count = -(-numbers // block)
        scale = self.mine[".absmax"]
        if scale is not None and scale.dtype == torch.uint8:
            scale = self.nested(about, count)
        else:
            scale = self.floats(".absmax", count)
        return four_bits(kind, codes, table, scale, shape, block=block)

    def read_state(self, state: Tensor) -> dict[str, Any]:
        try:
            is_text = state.dtype == torch.uint8 and state.numel() <= _MAX_STATE_BYTES
            about = json.loads(state.reshape(-1).cpu().numpy().tobytes()) if is_text else None
        except (ValueError, RecursionError):
            about = None
        if not is_dict(about):
            raise WeightsError(f"{self.where}: the quant_state of {self.name} is no JSON object")
        return about

    def shape(self, about: Mapping[str, Any]) -> tuple[int, ...]:
        shape = about.get("shape")
        if not is_list(shape) or not 1 <= len(shape) <= _MAX_DIMENSIONS:
            raise self.refusal("shape", shape, "positive whole numbers")
        if not all(type(size) is int and 0 < size < 1 << 32 for size in shape):
            raise self.refusal("shape", shape, "positive whole numbers")
        return tuple(shape)

    def block(self, about: Mapping[str, Any], key: str) -> int:
        block = about.get(key)
        if type(block) is not int or block not in _BLOCKS:
            raise self.refusal(key, block, f"one of {', '.join(map(str, _BLOCKS))}")
        return block

    def refusal(self, key: str, got: object, wanted: str) -> WeightsError:
        return WeightsError(
            f"{self.where}: {self.name} must have as {key} {wanted}, got {str(got)[:100]!r}"
        )

    def nested(self, about: Mapping[str, Any], count: int) -> Tensor:
        """Return scales that are codes of 256 numbers, with scales of their own."""
        codes = self.bytes(".absmax", count)
        size = self.block(about, "nested_blocksize")
        offset: Any = about.get("nested_offset")
        if type(offset) not in (int, float) or not abs(offset) < _LARGEST:
            raise self.refusal("nested_offset", offset, "a finite float32")
        table = self.floats(".nested_quant_map", _NESTED_CODES)
        blocks = self.floats(".nested_absmax", -(-count // size))
        return table[codes.int()] * blocks.repeat_interleave(size)[:count] + float(offset)

    def bytes(self, end: str, count: int) -> Tensor:
        given = self.mine[end]
        if given is None or given.dtype != torch.uint8 or given.numel() != count:
            got = "nothing" if given is None else f"{given.numel()} of {_kind(given)}"
            raise WeightsError(
                f"{self.where}: {self.name} needs {count} bytes of codes{end and ' in '}{end}, "
                f"got {got}"
            )
        return given.reshape(-1)

    def floats(self, end: str, count: int) -> Tensor:
        return _numbers(self.name, end, self.mine[end], count, self.where)
