"""Previews: small pictures of a state on its way, cheap enough for every step."""

import numpy as np
from PIL import Image

from mezzotint.images.codec import encode, to_pixels

__all__ = ["encode_preview"]


def encode_preview(image: np.ndarray, *, max_side_px: int = 256, quality: int = 70) -> bytes:
    """Encode a rough picture as JPEG.

    Args:
        image: Picture in about [-1, 1]; clipped. Shape (3, h, w), float. Values
            that are not finite are shown grey.
        max_side_px: Longest side of the preview; smaller pictures are enlarged by
            whole factors with plain pixels, larger ones reduced.
        quality: JPEG quality, 1 to 100.

    Returns:
        The JPEG file.
    """
    pixels = to_pixels(np.nan_to_num(np.asarray(image, np.float32), nan=0.0, posinf=1, neginf=-1))
    side = max(pixels.shape[:2])
    if side * 2 <= max_side_px:
        factor = max_side_px // side
        pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    elif side > max_side_px:
        picture = Image.fromarray(pixels)
        picture.thumbnail((max_side_px, max_side_px), Image.Resampling.BOX)
        pixels = np.asarray(picture)
    return encode(pixels, "jpeg", quality=quality)
