"""Resize: pictures of one size to pictures of another, with Lanczos.

Enlargement after decoding when no upscaling model is asked for, and fitting of
pictures that come with a request.
"""

from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from mezzotint.errors import InvalidRequest
from mezzotint.types import Size

__all__ = ["fit", "upscale_lanczos"]

_MAX_SIDE_PX = 16_384


def upscale_lanczos(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge a picture with a Lanczos-3 window.

    Args:
        pixels: Shape (H, W, 3), uint8.
        factor: Above 0; sides are rounded to whole pixels.

    Returns:
        Shape (round(H * factor), round(W * factor), 3), uint8; the very same
        pixels for factor 1.

    Raises:
        InvalidRequest: If a side would exceed 16384 px.
    """
    height, width = pixels.shape[:2]
    target = Size(round(width * factor), round(height * factor))
    if max(target) > _MAX_SIDE_PX:
        raise InvalidRequest(
            f"upscale.factor {factor:g} would give {target} px, sides may have {_MAX_SIDE_PX} px",
            field="upscale.factor",
            value=factor,
        )
    return fit(pixels, target)


def fit(pixels: np.ndarray, size: Size, mode: Literal["stretch", "crop"] = "stretch") -> np.ndarray:
    """Bring a picture to a size.

    Args:
        pixels: Shape (H, W, 3) or (H, W), uint8 or float32 in [0, 1] for (H, W).
        size: Width and height wanted, pixels.
        mode: ``"stretch"`` changes the proportions, ``"crop"`` cuts the overhang
            around the middle.

    Returns:
        The same kind of array at the new size.
    """
    if (pixels.shape[1], pixels.shape[0]) == tuple(size):
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if mode == "crop":
        picture = ImageOps.fit(picture, (size.width, size.height), Image.Resampling.LANCZOS)
    else:
        picture = picture.resize((size.width, size.height), Image.Resampling.LANCZOS)
    array = np.array(picture)
    return array.clip(0, 1) if array.dtype == np.float32 else array
