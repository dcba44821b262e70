"""Statistics: what can be counted in a picture's pixels, as one vector of numbers.

Sharpness, noise, blocks, exposure, contrast and colour, and where in the picture its detail
is. Nothing here knows what a picture shows.
"""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mezzotint.gates.quality import LUMINANCE, scene_statistics

__all__ = ["COUNT", "measure"]

Array = NDArray[np.float64]

COUNT = 71
"""How many numbers :func:`measure` gives."""
_MOST_PX, _LEAST_PX = 768, 32
_SMALL = 1e-4


def measure(pixels: Any) -> Array:
    """Measure a picture.

    Args:
        pixels: uint8 array of shape (H, W, 3). Longer sides than 768 px are made 768 px
            first, shorter ones than 32 px are made 32 px.

    Returns:
        Shape (71,), float64, all finite.
    """
    colour = _sized(pixels)
    grey: Array = colour @ LUMINANCE
    halved = _halved(grey)
    scales = (grey, halved, _halved(halved))
    brisque = (
        np.concatenate([scene_statistics(grey), scene_statistics(halved)])
        if float(np.ptp(grey)) >= 1 / 255
        else np.zeros(36)
    )
    parts = (
        brisque,
        _exposure(grey),
        _colour(colour),
        np.concatenate([_detail(scale) for scale in scales]),
        _noise_and_blocks(grey),
        _composition(grey),
    )
    return np.nan_to_num(np.concatenate(parts), nan=0.0, posinf=10.0, neginf=-10.0)


def _sized(pixels: Any) -> Array:
    """Return a picture as floats from 0 to 1, no larger and no smaller than is measured."""
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.uint8))
    factor = min(1.0, _MOST_PX / max(image.size))
    sides = [max(_LEAST_PX, round(side * factor)) for side in image.size]
    if (sides[0], sides[1]) != image.size:
        image = image.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.float64) / 255


def _halved(grey: Array) -> Array:
    height, width = grey.shape[0] // 2 * 2, grey.shape[1] // 2 * 2
    return grey[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


def _log(value: Any) -> Any:
    return np.log10(np.asarray(value) + _SMALL)


def _exposure(grey: Array) -> Array:
    """Measure brightness and contrast: 10 numbers."""
    low, dark, middle, light, high = np.percentile(grey, (1, 10, 50, 90, 99))
    counts = np.histogram(grey, 64, (0, 1))[0] / grey.size
    entropy = -(counts * np.log2(counts + 1e-12)).sum()
    black, white = (grey < 3 / 255).mean(), (grey > 252 / 255).mean()
    spread = grey.std()
    return np.array(
        [low, dark, middle, light, high, spread, _log(spread), black, white, entropy / 6]
    )


def _colour(colour: Array) -> Array:
    """Measure colour: 8 numbers, among them colourfulness (Hasler and Süsstrunk 2003)."""
    red, green, blue = colour[..., 0], colour[..., 1], colour[..., 2]
    first, second = red - green, (red + green) / 2 - blue
    spread, mean = np.hypot(first.std(), second.std()), np.hypot(first.mean(), second.mean())
    most, least = colour.max(axis=2), colour.min(axis=2)
    saturation = (most - least) / (most + _SMALL)
    codes = (colour * 7.999).astype(np.int64) @ np.array([64, 8, 1])
    shares = np.bincount(codes.ravel(), minlength=512) / codes.size
    palette = -(shares * np.log2(shares + 1e-12)).sum() / 9
    full = (saturation > 0.95).mean()
    levels = len(np.unique(np.asarray(colour[::2, ::2] * 255, dtype=np.uint8))) / 256
    return np.array(
        [spread + 0.3 * mean, _log(spread), mean, saturation.mean(), saturation.std(), full,
         palette, levels]
    )  # fmt: skip


def _detail(grey: Array) -> Array:
    """Measure edges at one scale: 3 numbers."""
    slopes = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])
    strong, strongest = np.percentile(slopes, (90, 99.5))
    return np.array([_log(slopes.mean()), _log(strong), _log(strongest)])


def _noise_and_blocks(grey: Array) -> Array:
    """Measure noise (Immerkær 1996), in all and where it is quiet, and blocks: 4 numbers."""
    across = grey[1:-1, :-2] - 2 * grey[1:-1, 1:-1] + grey[1:-1, 2:]
    above = grey[:-2, :-2] - 2 * grey[:-2, 1:-1] + grey[:-2, 2:]
    below = grey[2:, :-2] - 2 * grey[2:, 1:-1] + grey[2:, 2:]
    second = np.abs(above - 2 * across + below)
    steps = np.abs(np.diff(grey, axis=1)).mean(axis=0)
    on = steps[7::8].mean() if steps.size > 7 else steps.mean()
    return np.array(
        [_log(second.mean()), _log(np.percentile(second, 20)), _log(np.median(second)),
         _log(on) - _log(steps.mean())]
    )  # fmt: skip


def _quarters(side: int) -> list[int]:
    """Return where the quarters of a side begin, and its end."""
    return [int(place) for place in np.linspace(0.0, float(side), 5)]


def _composition(grey: Array) -> Array:
    """Measure where the detail is: 4 numbers."""
    slopes = np.zeros_like(grey)
    slopes[:-1, :-1] = np.hypot(np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1])
    rows, columns = _quarters(grey.shape[0]), _quarters(grey.shape[1])
    cells = np.array(
        [
            [slopes[a:b, c:d].mean() for c, d in itertools.pairwise(columns)]
            for a, b in itertools.pairwise(rows)
        ]
    )
    all_ = cells.mean() + _SMALL
    middle = cells[1:3, 1:3].mean()
    return np.array([middle / all_ / 4, cells.std() / all_, _log(cells.min()), _log(cells.max())])
