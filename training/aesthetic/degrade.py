"""Degrade: spoil a picture in one of the ways that pictures go wrong, by a known amount."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

__all__ = ["WAYS", "spoil"]

Way = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def _blur(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) / 128 * (0.5 + 5 * amount)))


def _coarse(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    factor = 1.5 + 7 * amount
    kind = (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)[int(draw.integers(2))]
    small = image.resize([max(4, round(s / factor)) for s in image.size], Image.Resampling.BOX)
    return small.resize(image.size, kind)


def _noise(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    shape = pixels.shape if draw.random() < 0.6 else (*pixels.shape[:2], 1)
    return _image(pixels + draw.normal(0, 6 + 90 * amount, shape))


def _salt(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    pixels = np.array(image)
    hit = draw.random(pixels.shape[:2]) < 0.01 + 0.3 * amount
    pixels[hit] = draw.integers(0, 2, (int(hit.sum()), 1)) * 255
    return Image.fromarray(pixels)


def _jpeg(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=max(1, round(32 - 30 * amount)))
    return Image.open(file).convert("RGB")


def _dark(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    return _image(np.asarray(image, np.float64) * (0.5 - 0.42 * amount))


def _bright(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    return _image(np.asarray(image, np.float64) * (1.5 + 2.5 * amount) + 30 * amount)


def _faint(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(0.45 - 0.4 * amount)


def _burnt(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    image = ImageEnhance.Contrast(image).enhance(1.6 + 3 * amount)
    return ImageEnhance.Color(image).enhance(1.8 + 4 * amount)


def _tinted(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    tint = draw.integers(0, 256, 3)
    share = 0.35 + 0.5 * amount
    return _image(np.asarray(image, np.float64) * (1 - share) + tint * share)


def _banded(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    step = 255 / (6 - 4.5 * amount)
    return _image(np.round(np.asarray(image, np.float64) / step) * step)


def _shuffled(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    pixels, count = np.array(image), 3 + round(5 * amount)
    side_y, side_x = pixels.shape[0] // count, pixels.shape[1] // count
    order, whole = draw.permutation(count * count), pixels.copy()
    for place, source in enumerate(order):
        (y, x), (v, u) = divmod(place, count), divmod(int(source), count)
        whole[y * side_y : (y + 1) * side_y, x * side_x : (x + 1) * side_x] = pixels[
            v * side_y : (v + 1) * side_y, u * side_x : (u + 1) * side_x
        ]
    return Image.fromarray(whole)


def _image(pixels: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(np.round(pixels), 0, 255).astype(np.uint8))


WAYS: dict[str, tuple[Way, float]] = {
    "blur": (_blur, 6.0), "coarse": (_coarse, 6.0), "noise": (_noise, 6.5), "salt": (_salt, 6.5),
    "jpeg": (_jpeg, 4.0), "dark": (_dark, 5.0), "bright": (_bright, 5.0), "faint": (_faint, 5.0),
    "burnt": (_burnt, 4.0), "tinted": (_tinted, 4.5), "banded": (_banded, 4.0),
    "shuffled": (_shuffled, 4.0),
}  # fmt: skip
"""Way -> how to, and how many of ten points the worst of it costs."""


def spoil(
    image: Image.Image, draw: np.random.Generator, ways: int
) -> tuple[Image.Image, float, tuple[str, ...]]:
    """Spoil a picture.

    Returns:
        The picture, how many points it lost, and how.
    """
    lost, names = 0.0, tuple(str(n) for n in draw.choice(list(WAYS), ways, replace=False))
    for name in names:
        how, most = WAYS[name]
        amount = float(draw.random())
        image = how(image, amount, draw)
        lost += most * (0.25 + 0.75 * amount)
    return image, lost, names
