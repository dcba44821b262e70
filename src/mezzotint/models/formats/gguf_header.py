"""Headers of GGUF files, read with every count and length held against the bytes there are.

The reader of the package ``gguf`` believes what a header says: an array of 2**60 numbers in a
file of 49 bytes is a loop without an end, and a million numbers are a million objects. Here
metadata is passed over, in time linear in the header, and only the tensors are kept.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from mezzotint.errors import WeightsError
from mezzotint.models.reading import refuse_special

__all__ = ["GgufTensor", "read_gguf_header"]

_VERSIONS = (2, 3)
_MAX_HEADER_BYTES = 100_000_000  # as of safetensors
_MAX_NAME_BYTES = 65_535  # of a key; no tensor's name is longer
_MAX_DIMENSIONS = 4
_MAX_DEPTH = 4  # of arrays of arrays
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LEAST = {_STRING: 8, _ARRAY: 12} | _SCALARS  # bytes that a value of each type takes at least
_NUMBERS = {"I": struct.Struct("<I"), "Q": struct.Struct("<Q")}
_ARRAY_START = struct.Struct("<IQ")  # type and count of its values
_ALIGNMENT, _ALIGNMENT_KEY = 32, "general.alignment"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor lies in a GGUF file.

    Args:
        name: Its name.
        kind: Its type: ``"Q4_0"``, ``"F32"``.
        shape: Of the numbers, rows first, as torch has it; all positive.
        row_bytes: Bytes of one row, the last of its dimensions.
        start: Where its bytes begin in the file.
        num_bytes: How many they are.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    row_bytes: int
    start: int
    num_bytes: int


class _CorruptError(ValueError):
    """What is wrong with a header."""


def read_gguf_header(path: Path) -> list[GgufTensor]:
    """Read where the tensors of a GGUF file lie.

    Args:
        path: The file.

    Returns:
        Its tensors in the file's order: all of them within the file, none over another.

    Raises:
        WeightsError: If the package gguf is missing, a tensor's type is unknown to it, or the
            file is corrupt.
    """
    if find_spec("gguf") is None:
        raise WeightsError(
            f"{path} needs the package gguf, and it is not installed: pip install gguf"
        )
    refuse_special(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            return _Walk(path, stream, size).tensors()
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror}") from None
    except _CorruptError as error:
        raise WeightsError(
            f"{path} is no whole GGUF file ({str(error)[:300]}); copy or download it again"
        ) from None


class _Walk:
    """One way through a header, from front to back."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self.path, self.stream, self.size = path, stream, size
        self.at = 0

    def tensors(self) -> list[GgufTensor]:
        if self.take(4) != b"GGUF":
            raise _CorruptError("it does not begin with GGUF")
        version = self.number("I")
        if version and version & 0xFFFF == 0:
            raise _CorruptError("its numbers are big-endian, and little-endian ones are read")
        if version not in _VERSIONS:
            raise _CorruptError(f"its version is {version}; read are 2 and 3")
        num_tensors, num_fields = self.number("Q"), self.number("Q")
        self.expect(num_fields, 13, "fields")  # a name's length, a type, a value
        alignment = self.alignment(num_fields)
        self.expect(num_tensors, 24, "tensors")  # a name's length, dimensions, type, offset
        said = [self.tensor() for _ in range(num_tensors)]
        start = -(-self.at // alignment) * alignment
        found = list(self.placed(said, start))
        if len({tensor.name for tensor in found}) < len(found):
            raise _CorruptError("two tensors have one name")
        end = start
        for tensor in sorted(found, key=lambda tensor: tensor.start):
            if tensor.start < end:
                raise _CorruptError(f"{tensor.name} lies over another tensor")
            end = tensor.start + tensor.num_bytes
        return found

    def alignment(self, num_fields: int) -> int:
        """Pass over the metadata; return what the tensors are aligned to."""
        names, alignment = set[str](), _ALIGNMENT
        for _ in range(num_fields):
            name, kind = self.name(), self.number("I")
            if name in names:
                raise _CorruptError(f"it has two fields {name}")
            names.add(name)
            if name != _ALIGNMENT_KEY:
                self.skip_values(kind, 1)
                continue
            alignment = self.number("I") if kind == _UINT32 else 0
            if alignment.bit_count() != 1:
                raise _CorruptError(f"its {_ALIGNMENT_KEY} is no power of two")
        return alignment

    def skip_values(self, kind: int, count: int, depth: int = 0) -> None:
        """Pass over values of one type."""
        if kind not in _LEAST:
            raise _CorruptError(f"it has a field of the unknown type {kind}")
        if depth > _MAX_DEPTH:
            raise _CorruptError(f"it has arrays within more than {_MAX_DEPTH} arrays")
        self.expect(count, _LEAST[kind], "values")
        if kind in _SCALARS:
            self.skip(count * _SCALARS[kind])
            return
        for _ in range(count):
            if kind == _STRING:
                self.skip(self.number("Q"))
            else:
                inner, inner_count = _ARRAY_START.unpack(self.take(_ARRAY_START.size))
                self.skip_values(inner, inner_count, depth + 1)

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return a tensor's name, shape, number of its type and offset."""
        name, dimensions = self.name(), self.number("I")
        if dimensions > _MAX_DIMENSIONS:
            raise _CorruptError(f"{name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self.number("I"), self.number("Q")

    def placed(
        self, said: Sequence[tuple[str, tuple[int, ...], int, int]], start: int
    ) -> Iterator[GgufTensor]:
        """Place tensors by their types and offsets behind the header."""
        from gguf import GGML_QUANT_SIZES

        kinds = {kind.value: (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
        for name, shape, number, offset in said:
            if number not in kinds:
                raise WeightsError(
                    f"{self.path}: {name} is of type {number}, which the package gguf does not know"
                )
            kind, block, block_bytes = kinds[number]
            last = shape[-1] if shape else 1
            if 0 in shape or last % block:
                raise _CorruptError(f"{name} of type {kind} has shape {shape}")
            row = last // block * block_bytes
            num_bytes = math.prod(shape[:-1]) * row
            if start + offset + num_bytes > self.size:
                end = start + offset + num_bytes
                raise _CorruptError(f"{name} ends at byte {end}, and it has {self.size}")
            yield GgufTensor(name, kind, shape, row, start + offset, num_bytes)

    def name(self) -> str:
        length = self.number("Q")
        if length > _MAX_NAME_BYTES:
            raise _CorruptError(f"it has a name of {length} bytes")
        try:
            text = self.take(length).decode()
        except UnicodeDecodeError:
            raise _CorruptError("it has a name that is not UTF-8") from None
        if not text.isprintable():
            raise _CorruptError("it has a name that cannot be printed")
        return text

    def number(self, kind: str) -> int:
        layout = _NUMBERS[kind]
        return layout.unpack(self.take(layout.size))[0]

    def take(self, count: int) -> bytes:
        self.advance(count)
        found = self.stream.read(count)
        if len(found) != count:
            raise _CorruptError("it was cut while it was read")
        return found

    def skip(self, count: int) -> None:
        self.advance(count)
        self.stream.seek(count, 1)

    def advance(self, count: int) -> None:
        if count > self.size - self.at:
            self.expect(count, 1, "bytes")
        self.at += count
        if self.at > _MAX_HEADER_BYTES:
            raise _CorruptError(f"its header has more than {_MAX_HEADER_BYTES} bytes")

    def expect(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things that take more bytes than are left."""
        left = self.size - self.at
        if count * least > left:
            raise _CorruptError(f"{count} {what} are expected at byte {self.at}, {left} bytes left")
