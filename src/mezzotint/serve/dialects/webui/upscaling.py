"""SD upscale: enlarging the start picture, and joining the tiles that were drawn over it."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request

from mezzotint.request import Output
from mezzotint.serve.dialects.a1111_extras import enlarge
from mezzotint.serve.dialects.a1111_lists import upscaler_names
from mezzotint.serve.dialects.webui.scripts import Script, tile_bodies, whole_number
from mezzotint.serve.dialects.webui.tiles import Layout, combine, cut, lay_out, write_png
from mezzotint.serve.front import Front
from mezzotint.types import ImageInput, ImageOutput

__all__ = ["joined", "tiled"]

_SIDE = 512  # of a tile where the body has none, as there


async def tiled(
    front: Front, http: Request, script: Script, body: Mapping[str, Any]
) -> tuple[Script, Layout]:
    """Enlarge the start picture of a body, and return the script that draws its tiles.

    Raises:
        TooLarge: If there are more tiles than any request may have pictures.
    """
    how = script.enlarge
    assert how is not None  # noqa: S101 - the caller saw to it
    names = ("None", *(await upscaler_names(front)))
    upscaler = how.upscaler
    if isinstance(upscaler, int):
        upscaler = names[upscaler] if 0 <= upscaler < len(names) else "None"
    picture = ImageInput.from_base64(str(body["init_images"][0]), field="image")
    image = await enlarge(front, http, picture.data, how.factor, upscaler)
    width, height = (whole_number(body.get(side), _SIDE) for side in ("width", "height"))
    layout = lay_out(image.width, image.height, width, height, how.overlap)
    pixels = await _pixels(front, image.data)
    tiles = await asyncio.to_thread(_encoded, pixels, layout)
    chains = tile_bodies(body, tiles, layout.tile_width, layout.tile_height)
    return replace(script, chains=chains), layout


async def joined(front: Front, images: Sequence[ImageOutput], layout: Layout) -> list[bytes]:
    """Put the tiles of each round together.

    Args:
        front: What stands between the doors and the service.
        images: The tiles as they were drawn, round by round.
        layout: Where they lie.
    """
    made: list[bytes] = []
    for first in range(0, len(images) - layout.num_tiles + 1, layout.num_tiles):
        parts = images[first : first + layout.num_tiles]
        tiles = [await _pixels(front, part.data) for part in parts]
        whole = await asyncio.to_thread(combine, tiles, layout)
        made.append(await asyncio.to_thread(write_png, whole, layout.width, layout.height))
    return made


async def _pixels(front: Front, data: bytes) -> bytes:
    """Return the pixels of a file, rows of three bytes each."""
    return await front.service.grid([data], columns=1, padding_px=0, output=Output(), raw=True)


def _encoded(pixels: bytes, layout: Layout) -> list[str]:
    sides = (layout.tile_width, layout.tile_height)
    files = (write_png(tile, *sides) for tile in cut(pixels, layout))
    return [base64.b64encode(file).decode("ascii") for file in files]
