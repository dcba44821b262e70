"""Codec: arrays to PNG, JPEG and WebP files and back.

Two ranges, two names: ``images`` are float pictures in [-1, 1] of shape
(B, 3, H, W), as models make them; ``pixels`` are uint8 of shape (H, W, 3). The
one conversion between them rounds to the nearest level; truncating would darken
every picture by half a level.

What comes from outside is not trusted: formats are listed, sizes are checked
before a pixel is decoded, animations are refused, Exif orientation is applied,
transparency is laid on white, 16-bit pictures are scaled.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from mezzotint.errors import ImageError, PictureTooLarge, ShapeError, WorkFailed
from mezzotint.images.config import ImageConfig
from mezzotint.images.png import encode_png
from mezzotint.textchunks import PARAMETERS, RECIPE, jpeg_segments, make_exif
from mezzotint.types import OutputFormat, Size

__all__ = [
    "check_image",
    "decode_image",
    "decode_mask",
    "encode",
    "read_size",
    "to_images",
    "to_pixels",
]

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Round float pictures to 8 bits.

    Args:
        images: Pictures in [-1, 1]; values outside are clipped. Shape
            (B, 3, H, W) or (3, H, W), any float type.

    Returns:
        Pixels. Shape (B, H, W, 3) or (H, W, 3), uint8.

    Raises:
        ShapeError: If there are not three channels.
        WorkFailed: If a value is not finite; it would come out black.
    """
    array = np.asarray(images, dtype=np.float32)
    if array.ndim not in (3, 4) or array.shape[-3] != 3:
        raise ShapeError(f"expected pictures of shape (B, 3, H, W), got {array.shape}")
    # Minimum and maximum pass NaN and infinity on. One buffer is worked on in place: each
    # further array costs more than the arithmetic does.
    if array.size and not (math.isfinite(array.min()) and math.isfinite(array.max())):
        raise WorkFailed("the model answered a picture with values that are not finite")
    levels = array * np.float32(0.5)
    levels += np.float32(0.5)
    np.minimum(levels, np.float32(1), out=levels)
    np.maximum(levels, np.float32(0), out=levels)
    levels *= np.float32(255)
    np.rint(levels, out=levels)
    pixels = np.empty((*array.shape[:-3], *array.shape[-2:], 3), np.uint8)
    for channel in range(3):  # plane by plane: a third of the time that turning all of it takes
        pixels[..., channel] = levels[..., channel, :, :]
    return pixels


def to_images(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels to [-1, 1]; the inverse of :func:`to_pixels`.

    Args:
        pixels: Shape (H, W, 3) or (B, H, W, 3), uint8.

    Returns:
        Shape (3, H, W) or (B, 3, H, W), float32.
    """
    array = np.asarray(pixels, dtype=np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(np.moveaxis(array, -1, -3))


def encode(
    pixels: np.ndarray,
    output_format: OutputFormat = "png",
    *,
    quality: int = 90,
    parameters: str = "",
    recipe: str = "",
) -> bytes:
    """Encode one picture, with the texts inside.

    Args:
        pixels: Shape (H, W, 3), uint8.
        output_format: ``"png"`` (lossless), ``"jpeg"`` or ``"webp"``.
        quality: 1 to 100 for JPEG and WebP.
        parameters: A1111's text, "" for none.
        recipe: Our recipe as JSON, "" for none.

    Returns:
        The file; equal arguments give equal bytes.

    Raises:
        ShapeError: If the array is not such a picture, or too large for the format.
    """
    if output_format == "png":
        texts = {PARAMETERS: parameters, RECIPE: recipe}
        return encode_png(pixels, {key: text for key, text in texts.items() if text})
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    stream = io.BytesIO()
    limit = 16_383 if output_format == "webp" else 65_500
    if max(picture.size) > limit:
        raise ShapeError(f"{output_format} holds at most {limit} px a side, got {picture.size}")
    if output_format == "jpeg":
        # Full chroma from 90 up: pictures made by models have saturated edges.
        picture.save(stream, "JPEG", quality=quality, subsampling=0 if quality >= 90 else 2)
        data = stream.getvalue()
        start = 4 + struct.unpack_from(">H", data, 4)[0]  # behind SOI and APP0
        return data[:start] + jpeg_segments(parameters, recipe) + data[start:]
    exif = make_exif(parameters, recipe) if parameters or recipe else b""
    picture.save(stream, "WEBP", quality=quality, method=4, exif=exif)
    return stream.getvalue()


def decode_image(
    data: bytes, *, field: str = "image", config: ImageConfig | None = None
) -> np.ndarray:
    """Decode a picture from outside to RGB, transparency laid on white.

    Args:
        data: The encoded file.
        field: Request field to name in errors.
        config: Limits.

    Returns:
        Pixels. Shape (H, W, 3), uint8.

    Raises:
        ImageError: If it is no still picture of a known format within the limits.
    """
    return _lay_on(_decode(data, field, config or ImageConfig()), 255)


def decode_mask(
    data: bytes, *, field: str = "mask", config: ImageConfig | None = None
) -> np.ndarray:
    """Decode a mask: where to repaint, and how much.

    A mask without transparency says it by brightness (white repaints). A mask
    with transparent parts says it by them, as OpenAI's edits do: transparent
    repaints. White on transparent, as drawn on a web canvas, repaints the white.

    Args:
        data: The encoded file.
        field: Request field to name in errors.
        config: Limits.

    Returns:
        Shape (H, W), float32 in [0, 1]; 1 repaints.

    Raises:
        ImageError: As for :func:`decode_image`.
    """
    picture = _decode(data, field, config or ImageConfig())
    if picture.mode != "RGBA":
        return np.asarray(picture.convert("L"), np.float32) / np.float32(255)
    array = np.asarray(picture)
    alpha = array[..., 3]
    seen = array[..., :3][alpha > 0]
    if alpha.min() == 255:
        return np.asarray(picture.convert("L"), np.float32) / np.float32(255)
    hidden = array[..., :3][alpha == 0]
    if seen.size and seen.min() >= 250 and (hidden.size == 0 or hidden.max() == 0):
        return alpha.astype(np.float32) / np.float32(255)
    return 1 - alpha.astype(np.float32) / np.float32(255)


def read_size(data: bytes, *, field: str = "image", config: ImageConfig | None = None) -> Size:
    """Read the size of a picture from its head; no pixel is decoded.

    Args:
        data: The encoded file.
        field: Request field to name in errors.
        config: Limits.

    Raises:
        ImageError: As for :func:`decode_image`, as far as the head tells.
    """
    return Size(*_open(data, field, config or ImageConfig(), lambda picture: picture).size)


def check_image(data: bytes, *, field: str = "image", config: ImageConfig | None = None) -> None:
    """Decode a picture and keep nothing of it: whoever calls asks whether it is whole.

    Args:
        data: The encoded file.
        field: Request field to name in errors.
        config: Limits.

    Raises:
        ImageError: As for :func:`decode_image`.
    """

    def read(picture: Image.Image) -> Image.Image:
        picture.load()
        return picture

    _open(data, field, config or ImageConfig(), read)


def _decode(data: bytes, field: str, config: ImageConfig) -> Image.Image:
    """Open, check, decode and turn a picture; mode is L, RGB or RGBA afterwards."""

    def read(picture: Image.Image) -> Image.Image:
        picture.load()
        return _simplify(ImageOps.exif_transpose(picture), field)

    return _open(data, field, config, read)


def _open(
    data: bytes, field: str, config: ImageConfig, read: Callable[[Image.Image], Image.Image]
) -> Image.Image:
    """Check the head of a file and read on; what is broken is an error that names the field."""
    if len(data) > config.max_bytes:
        raise ImageError(
            f"{field} must be at most {config.max_bytes} bytes, got {len(data)}",
            field=field,
            allowed=f"at most {config.max_bytes} bytes",
        )
    try:
        picture = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_size(picture, field, config)
        return read(picture)
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(field, "more", config) from None
    except Image.UnidentifiedImageError:
        listed = ", ".join(_FORMATS)
        raise ImageError(
            f"{field} must be a picture of a known format ({listed}), got {len(data)} bytes "
            f"that begin with {data[:8]!r}",
            field=field,
            allowed=listed,
        ) from None
    except _BROKEN as error:
        raise ImageError(f"{field} is a broken picture: {error}", field=field) from None


def _check_size(picture: Image.Image, field: str, config: ImageConfig) -> None:
    width, height = picture.size
    if width * height > config.max_pixels or max(width, height) > config.max_side_px:
        raise _too_large(field, f"{width}x{height}", config)
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        raise ImageError(
            f"{field} must be a still picture, got an animation", field=field, allowed="one frame"
        )


def _too_large(field: str, got: str, config: ImageConfig) -> PictureTooLarge:
    allowed = f"at most {config.max_pixels} pixels and {config.max_side_px} px a side"
    return PictureTooLarge(f"{field} must have {allowed}, got {got}", field=field, allowed=allowed)


def _simplify(picture: Image.Image, field: str) -> Image.Image:
    """Bring any mode to L, RGB or RGBA, 8 bits a channel."""
    mode = picture.mode
    if mode.startswith("I"):  # 16 bits of grey, or 32 that hold 16
        array = np.asarray(picture).astype(np.int64)
        return Image.fromarray(((array.clip(0, 65_535) + 128) // 257).astype(np.uint8))
    if mode == "F":
        raise ImageError(f"{field} must hold 8 or 16 bits a channel, got floats", field=field)
    if mode in ("LA", "PA", "La") or (mode in ("P", "L", "RGB") and "transparency" in picture.info):
        return picture.convert("RGBA")
    if mode == "1":
        return picture.convert("L")
    return picture if mode in ("L", "RGB", "RGBA") else picture.convert("RGB")


def _lay_on(picture: Image.Image, level: int) -> np.ndarray:
    """Composite over a grey level; opaque pictures only change mode."""
    if picture.mode != "RGBA":
        return np.array(picture.convert("RGB"))
    array = np.asarray(picture).astype(np.uint32)
    alpha = array[..., 3:]
    blended = (array[..., :3] * alpha + level * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)
