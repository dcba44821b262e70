"""PNG: a fast, deterministic, lossless encoder.

Pillow's encoder tries five filters a row and compresses hard; that takes longer
than decoding the picture did. Here every row is filtered with "up" in one numpy
subtraction and compressed with ISA-L's level 1. Equal pixels and texts give equal
bytes; no time stamp is written.

Source: PNG 3rd edition (W3C 2025), sections 9 (filters) and 11 (chunks).
"""

import struct
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from isal import isal_zlib

from mezzotint.errors import ShapeError
from mezzotint.textchunks import png_chunk, png_chunks

__all__ = ["deflate", "encode_png", "filter_rows"]

_UP = 2
_COLOUR_TYPES = {1: 0, 3: 2, 4: 6}
_SRGB = png_chunk(b"sRGB", b"\0")  # rendering intent: perceptual


def encode_png(pixels: np.ndarray, texts: Mapping[str, str] | None = None, level: int = 1) -> bytes:
    """Encode a picture as PNG.

    Args:
        pixels: Shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8.
        texts: Text chunks by keyword, written before the pixels.
        level: ISA-L level 0 to 3.

    Returns:
        The file.

    Raises:
        ShapeError: If the array is not such a picture.
    """
    array = pixels[:, :, None] if pixels.ndim == 2 else pixels
    if array.ndim != 3 or array.shape[2] not in _COLOUR_TYPES or array.dtype != np.uint8:
        raise ShapeError(
            f"expected uint8 pixels of shape (H, W, 1, 3 or 4), got {pixels.dtype} {pixels.shape}"
        )
    height, width, channels = array.shape
    if not (height and width):
        raise ShapeError(f"expected a picture with pixels in it, got {width}x{height}")
    filtered = filter_rows(array)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", header),
            _SRGB if channels > 1 else b"",
            png_chunks(texts or {}),
            png_chunk(b"IDAT", deflate(filtered, level)),
            png_chunk(b"IEND", b""),
        )
    )


def deflate(filtered: np.ndarray, level: int) -> bytes:
    """Compress filtered rows; the library leaves the type of what it takes open."""
    return cast("Any", isal_zlib).compress(filtered, level)


def filter_rows(array: np.ndarray) -> np.ndarray:
    """Filter the rows of a picture with "up", ready to be compressed.

    Args:
        array: Shape (H, W, C), uint8.

    Returns:
        Shape (H, W * C + 1), uint8; the first column names the filter.
    """
    height, width, channels = array.shape
    rows = np.ascontiguousarray(array).reshape(height, width * channels)
    filtered = np.empty((height, width * channels + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered
