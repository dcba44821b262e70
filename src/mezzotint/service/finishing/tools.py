"""Tools: what doors need done to encoded pictures; doors themselves decode nothing."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from mezzotint.errors import InvalidRequest, NotReady, PictureTooLarge
from mezzotint.images.codec import check_image, decode_image, encode, read_size
from mezzotint.images.config import ImageConfig
from mezzotint.images.metadata import read_recipe
from mezzotint.images.preprocess import preprocess
from mezzotint.images.readers import read_foreign
from mezzotint.images.resize import fit, upscale_lanczos
from mezzotint.images.sheets import make_sheet
from mezzotint.request import Output
from mezzotint.textchunks import PARAMETERS, read_texts
from mezzotint.types import ImageOutput, Size

__all__ = [
    "Upscalers",
    "enlarge",
    "grid",
    "inspect",
    "installed_upscalers",
    "loaded_anew",
    "prepare",
    "upscale",
]

Upscalers = Callable[[str], AbstractContextManager[Callable[[np.ndarray], np.ndarray]]]
"""Gives an upscaler by name, in memory for the length of a block."""


def loaded_anew(name: str) -> AbstractContextManager[Callable[[np.ndarray], np.ndarray]]:
    """Give an upscaler that nobody else has.

    Raises:
        UnknownName: If there is none of that name.
        NotReady: If its weights are not installed.
    """
    from mezzotint.models.families.upscalers import load_upscaler

    return contextlib.nullcontext(load_upscaler(name))


def inspect(data: bytes, known_models: Collection[str] = ()) -> Mapping[str, Any]:
    """Read the recipe inside a picture.

    Returns:
        ``parameters``, ``items``, ``recipe``, ``request`` and ``not_honoured``; see
        :class:`~mezzotint.service.base.PictureTools`.

    Raises:
        ImageError: If the bytes are not a picture.
    """
    items = read_texts(data)
    recipe = read_recipe(data)
    if recipe is None or not recipe["request"].get("output", {}).get("animation"):
        check_image(data)
    foreign = read_foreign(data, known_models=known_models) if recipe is None else None
    request: Mapping[str, Any] | None = recipe["request"] if recipe else None
    if foreign is not None:
        request = foreign.request.to_dict()
    return {
        "parameters": items.get(PARAMETERS, ""),
        "items": items,
        "recipe": recipe,
        "request": request,
        "not_honoured": list(foreign.not_honoured) if foreign is not None else [],
    }


def prepare(data: bytes, how: str, limits: ImageConfig) -> bytes:
    """Return a control picture as a preprocessor makes it, a PNG.

    Raises:
        ImageError: If the bytes are not a picture.
        UnknownName: If there is no such preprocessor.
        InvalidRequest: If its numbers are wrong.
    """
    return encode(preprocess(decode_image(data, config=limits), how))


def upscale(
    data: bytes,
    *,
    factor: float,
    model: str | None,
    output: Output,
    limits: ImageConfig,
    cover: tuple[int, int] | None = None,
    crop: bool = False,
    upscalers: Upscalers = loaded_anew,
) -> ImageOutput:
    """Enlarge a picture, or bring it to cover a size, with or without what overhangs.

    Raises:
        ImageError: If the bytes are not a picture.
        PictureTooLarge: If it is, or would become, too large; found out before it is decoded.
        UnknownName: If there is no upscaler ``model``.
        NotReady: If its weights are not installed.
    """
    size, most = read_size(data, config=limits), limits.most_output_pixels
    if cover is not None:
        factor = max(cover[0] / size.width, cover[1] / size.height)
    if size.width * size.height * factor**2 > most:
        raise PictureTooLarge(
            f"upscale.factor must give at most {most} pixels, {factor:g} would make "
            f"{round(size.width * factor)}x{round(size.height * factor)} of {size}",
            field="upscale.factor",
            value=factor,
            allowed=f"at most {most} pixels",
        )
    pixels = decode_image(data, config=limits)
    pixels = enlarge(pixels, factor, model or "lanczos", upscalers)
    if cover is not None and crop:
        top, left = (pixels.shape[0] - cover[1]) // 2, (pixels.shape[1] - cover[0]) // 2
        pixels = pixels[top : top + cover[1], left : left + cover[0]]
    return ImageOutput(
        index=0,
        seed=0,
        data=encode(pixels, output.format, quality=output.quality),
        format=output.format,
        width=pixels.shape[1],
        height=pixels.shape[0],
        pixels=pixels,
    )


def enlarge(
    pixels: np.ndarray, factor: float, name: str, upscalers: Upscalers = loaded_anew
) -> np.ndarray:
    """Enlarge pixels with Lanczos, or with a network and Lanczos for what is left.

    Args:
        pixels: Shape (H, W, 3), uint8.
        factor: Above 0; at 1 and below a network is not asked.
        name: ``lanczos`` or one of :data:`~mezzotint.models.families.upscalers.UPSCALERS`.
        upscalers: Gives the network.

    Returns:
        Shape (round(H * factor), round(W * factor), 3), uint8.

    Raises:
        UnknownName: If there is none of that name.
        NotReady: If its weights are not installed.
    """
    if name == "lanczos" or factor <= 1:
        return upscale_lanczos(pixels, factor)
    height, width = pixels.shape[:2]
    with upscalers(name) as network:
        larger = network(pixels)
    return fit(larger, Size(round(width * factor), round(height * factor)))


def installed_upscalers() -> tuple[str, ...]:
    """Return the names of upscalers whose weights are there."""
    from mezzotint.models.families.upscalers import UPSCALERS, upscaler_digest

    found: list[str] = []
    for name in UPSCALERS:
        with contextlib.suppress(NotReady):
            upscaler_digest(name)
            found.append(name)
    return tuple(found)


def grid(
    images: Sequence[bytes], *, columns: int, padding_px: int, output: Output, raw: bool = False
) -> bytes:
    """Lay encoded pictures of one size out in a grid, a file or its ``raw`` pixels.

    Raises:
        InvalidRequest: If there are none.
    """
    if not images:
        raise InvalidRequest("a grid needs at least one picture, got none", field="images")
    pictures = [decode_image(image) for image in images]
    sheet = make_sheet(pictures, columns=min(columns, len(pictures)), gap_px=padding_px)
    return sheet.tobytes() if raw else encode(sheet, output.format, quality=output.quality)
