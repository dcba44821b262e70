"""Preprocess: pictures into what ControlNets were trained on.

Edges are found as OpenCV's ``Canny`` finds them (3x3 Sobel, sum of magnitudes, the
channel with the strongest gradient), pixel for pixel, without OpenCV.

Dimensions: H and W rows and columns.
"""

import numpy as np
from PIL import Image, ImageFilter

from mezzotint.images.resize import fit
from mezzotint.preprocessing import read_preprocess
from mezzotint.types import Size

__all__ = ["canny", "preprocess"]

_TAN_22 = 13573  # tan(22.5 degrees) in 1/32768, as OpenCV rounds it
_LUMA = np.array([299, 587, 114], dtype=np.int64)


def preprocess(pixels: np.ndarray, text: str | None) -> np.ndarray:
    """Prepare a control picture.

    Args:
        pixels: Shape (H, W, 3), uint8.
        text: Preprocessor and numbers, e.g. ``canny:100:200``; None changes nothing.

    Returns:
        The same shape and type.

    Raises:
        UnknownName: If there is no such preprocessor.
        InvalidRequest: If its numbers are wrong.
    """
    name, values = read_preprocess(text, "controls.preprocess")
    if name == "canny":
        edges = canny(pixels, *values)
    elif name == "threshold":
        grey = (pixels.astype(np.int64) @ _LUMA + 500) // 1000
        edges = np.where(grey > values[0], 255, 0).astype(np.uint8)
    elif name == "invert":
        return 255 - pixels
    elif name == "blur":
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.array(picture.filter(ImageFilter.GaussianBlur(values[0])))
    elif name == "tile":
        size = Size(pixels.shape[1], pixels.shape[0])
        small = [max(1, round(side / values[0])) for side in size]
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return fit(np.array(picture.resize((small[0], small[1]), Image.Resampling.BOX)), size)
    else:
        return pixels
    return np.repeat(edges[:, :, None], 3, axis=2)


def canny(pixels: np.ndarray, low: float = 100, high: float = 200) -> np.ndarray:
    """Find edges.

    Args:
        pixels: Shape (H, W, 3), uint8.
        low: Gradient above which an edge that touches a strong one goes on.
        high: Gradient above which an edge begins, >= ``low``.

    Returns:
        255 on edges, 0 elsewhere. Shape (H, W), uint8.

    Source: Canny 1986, with the neighbours and the ties of OpenCV's implementation.
    """
    along, down = _sobel(pixels)
    strength = np.abs(along) + np.abs(down)
    best = strength.argmax(axis=2)[:, :, None]
    along, down, strength = (
        np.take_along_axis(array, best, axis=2)[:, :, 0] for array in (along, down, strength)
    )
    kept = (strength > int(low)) & _is_ridge(along, down, strength)
    return np.where(_follow(kept, kept & (strength > int(high))), 255, 0).astype(np.uint8)


def _sobel(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 3x3 derivatives along rows and down columns, edges repeated. (H, W, C)."""
    p = np.pad(pixels.astype(np.int64), ((1, 1), (1, 1), (0, 0)), mode="edge")
    smooth_down = p[:-2] + 2 * p[1:-1] + p[2:]
    smooth_along = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    return smooth_down[:, 2:] - smooth_down[:, :-2], smooth_along[2:] - smooth_along[:-2]


def _is_ridge(along: np.ndarray, down: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Tell where the strength is greatest across the edge; of equals the first counts."""
    around = np.pad(strength, 1)
    rows, columns = strength.shape

    def near(row: int, column: int) -> np.ndarray:
        return around[1 + row : 1 + row + rows, 1 + column : 1 + column + columns]

    x, y = np.abs(along), np.abs(down) << 15
    flat = y < x * _TAN_22
    steep = y > x * _TAN_22 + (x << 16)
    falling = (along < 0) != (down < 0)
    across = (strength > near(0, -1)) & (strength >= near(0, 1))
    up_down = (strength > near(-1, 0)) & (strength >= near(1, 0))
    rising_diagonal = (strength > near(-1, 1)) & (strength > near(1, -1))
    falling_diagonal = (strength > near(-1, -1)) & (strength > near(1, 1))
    diagonal = np.where(falling, rising_diagonal, falling_diagonal)
    return np.where(flat, across, np.where(steep, up_down, diagonal))


def _follow(kept: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """Return the kept pixels that hang together with a strong one."""
    rows, columns = kept.shape
    width = columns + 2
    open_ = np.pad(kept, 1).reshape(-1)
    found = np.pad(strong, 1).reshape(-1)
    steps = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    front = np.flatnonzero(found)
    while front.size:
        around = np.unique((front[:, None] + steps).reshape(-1))
        front = around[open_[around] & ~found[around]]
        found[front] = True
    return found.reshape(rows + 2, width)[1:-1, 1:-1]
