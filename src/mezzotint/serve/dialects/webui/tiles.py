"""Tiles of SD upscale: a picture cut into overlapping parts, and put together again.

The parts lie and are blended as A1111's script has them. Pixels are rows of three bytes
each, as the service's grid answers them raw; no picture library is needed here.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Layout", "combine", "cut", "lay_out", "write_png"]

_CHANNELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where the tiles of a picture lie.

    Args:
        width: Of the picture, px.
        height: Of the picture, px.
        tile_width: Of each tile, px.
        tile_height: Of each tile, px.
        overlap: How far a tile reaches over the one before, px, where it is blended in.
        xs: Left sides of the tiles of a row, rising.
        ys: Upper sides of the rows, rising.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    overlap: int
    xs: tuple[int, ...]
    ys: tuple[int, ...]

    @property
    def num_tiles(self) -> int:
        """How many there are."""
        return len(self.xs) * len(self.ys)


def lay_out(width: int, height: int, tile_width: int, tile_height: int, overlap: int) -> Layout:
    """Spread as few tiles as cover a picture evenly over it.

    Args:
        width: Of the picture, px.
        height: Of the picture, px.
        tile_width: Of a tile; no wider than the picture is used.
        tile_height: Of a tile; no higher than the picture is used.
        overlap: Least overlap; at most all of a tile but one pixel is used.

    Example:
        >>> lay_out(1024, 512, 512, 512, 64).xs
        (0, 256, 512)
    """
    across, down = min(tile_width, width), min(tile_height, height)
    overlap = max(0, min(overlap, across - 1, down - 1))
    xs = _starts(width, across, overlap)
    ys = _starts(height, down, overlap)
    return Layout(
        width=width, height=height, tile_width=across, tile_height=down, overlap=overlap,
        xs=xs, ys=ys,
    )  # fmt: skip


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    count = max(1, math.ceil((length - overlap) / (tile - overlap)))
    step = (length - tile) / (count - 1) if count > 1 else 0.0
    return tuple(min(int(k * step), length - tile) for k in range(count))


def cut(pixels: bytes, layout: Layout) -> list[bytes]:
    """Cut a picture into its tiles, row by row."""
    stride, wide = layout.width * _CHANNELS, layout.tile_width * _CHANNELS
    return [
        b"".join(
            pixels[row * stride + x * _CHANNELS : row * stride + x * _CHANNELS + wide]
            for row in range(y, y + layout.tile_height)
        )
        for y in layout.ys
        for x in layout.xs
    ]


def combine(tiles: Sequence[bytes], layout: Layout) -> bytes:
    """Put tiles together; each fades in over the overlap with the one before.

    Args:
        tiles: Pixels of each, row by row.
        layout: Where they lie.
    """
    ramp = [k * 255 // layout.overlap for k in range(layout.overlap)]
    whole = bytearray(layout.width * layout.height * _CHANNELS)
    stride, columns = layout.width * _CHANNELS, len(layout.xs)
    for number, y in enumerate(layout.ys):
        band = _band(tiles[number * columns : (number + 1) * columns], layout, ramp)
        for row in range(layout.tile_height):
            start = (y + row) * stride
            new = band[row * stride : (row + 1) * stride]
            if y and row < layout.overlap:
                new = _mixed(whole[start : start + stride], new, [ramp[row]] * layout.width)
            whole[start : start + stride] = new
    return bytes(whole)


def _band(tiles: Sequence[bytes], layout: Layout, ramp: Sequence[int]) -> bytes:
    """Put the tiles of one row together."""
    wide, stride = layout.tile_width * _CHANNELS, layout.width * _CHANNELS
    faded = layout.overlap * _CHANNELS
    band = bytearray(stride * layout.tile_height)
    for tile, x in zip(tiles, layout.xs, strict=True):
        for row in range(layout.tile_height):
            start = row * stride + x * _CHANNELS
            new = tile[row * wide : (row + 1) * wide]
            if x and faded:
                band[start : start + faded] = _mixed(band[start : start + faded], new[:faded], ramp)
                band[start + faded : start + wide] = new[faded:]
            else:
                band[start : start + wide] = new
    return bytes(band)


def _mixed(old: bytes | bytearray, new: bytes, shares: Sequence[int]) -> bytes:
    """Lay pixels over others; a share of 255 shows nothing of the old ones."""
    return bytes(
        (new[3 * k + c] * share + old[3 * k + c] * (255 - share) + 127) // 255
        for k, share in enumerate(shares)
        for c in range(_CHANNELS)
    )


def write_png(pixels: bytes, width: int, height: int) -> bytes:
    """Write pixels as a PNG without any text."""
    stride = width * _CHANNELS
    rows = b"".join(b"\0" + pixels[r * stride : (r + 1) * stride] for r in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
