"""Arrays: pictures as nested lists of numbers, as TorchServe's diffusers example answers."""

import asyncio
from typing import Any

import orjson
from starlette.responses import Response

from mezzotint.request import Output
from mezzotint.serve.front import Front
from mezzotint.types import GenerationResult

__all__ = ["answer", "to_lists"]


async def answer(front: Front, result: GenerationResult) -> Response:
    """Answer with the pixels of a result's pictures, all of one size.

    Returns:
        JSON: height lists of width lists of three numbers 0 to 255; a list of such for
        several pictures.
    """
    first = result.images[0]
    files = [image.data for image in result.images]
    pixels = await front.service.grid(files, columns=1, padding_px=0, output=Output(), raw=True)
    written = await asyncio.to_thread(
        lambda: orjson.dumps(to_lists(pixels, len(files), first.height, first.width))
    )
    return Response(written, media_type="application/json")


def to_lists(pixels: bytes, count: int, height: int, width: int) -> list[Any]:
    """Return pixels as nested lists.

    Args:
        pixels: Of all pictures, one below the other, three bytes each.
        count: Pictures.
        height: Of each, pixels.
        width: Of each, pixels.

    Returns:
        (H, W, 3) of a single picture, (N, H, W, 3) of several.

    Example:
        >>> to_lists(bytes(range(6)), 1, 1, 2)
        [[[0, 1, 2], [3, 4, 5]]]
    """
    shape = (height, width, 3) if count == 1 else (count, height, width, 3)
    return memoryview(pixels).cast("B", shape).tolist()
