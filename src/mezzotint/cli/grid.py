"""Grids: one request over the values of one or two fields, as a labelled sheet.

``mezzotint generate "a pear" --grid-x guidance_scale=1,3,7 --grid-y seed=1,2``
draws six pictures at once and lays them out with the values beside them.
"""

import asyncio
import dataclasses
import io
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mezzotint.cli.flags import WrongFlag
from mezzotint.cli.outputs import Destination
from mezzotint.cli.session import new_id, open_service, run
from mezzotint.request import GenerationRequest
from mezzotint.settings import Settings
from mezzotint.types import ImageOutput

__all__ = ["Axis", "draw_grid", "parse_axis"]

MAX_CELLS = 400
_LABEL_PX, _MARGIN_PX = 18, 6


class Axis(NamedTuple):
    """A request field and the values it takes along one side of the sheet."""

    field: str
    values: tuple[Any, ...]


def parse_axis(text: str | None, flag: str) -> Axis | None:
    """Read ``FIELD=V1,V2,...``, or ``FIELD=[JSON, ...]`` for values with commas."""
    if text is None:
        return None
    field, equals, listed = text.partition("=")
    if not (equals and field.strip() and listed.strip()):
        raise WrongFlag(flag, f"must look like FIELD=V1,V2,..., got {text!r}")
    if listed.lstrip().startswith("["):
        try:
            values = json.loads(listed)
        except ValueError as error:
            raise WrongFlag(flag, f"is not JSON: {error}", "a JSON list") from None
    else:
        values = [_value(part.strip()) for part in listed.split(",")]
    return Axis(field.strip(), tuple(values))


def draw_grid(
    settings: Settings,
    make: Callable[[list[tuple[str, Any]]], GenerationRequest],
    axes: tuple[Axis | None, Axis | None],
    destination: Destination,
) -> Path | None:
    """Draw every cell and write the sheet.

    Args:
        settings: For the service.
        make: Builds the request of a cell from its overrides.
        axes: Across and down; one of them may be None.
        destination: Where the sheet goes.

    Raises:
        InvalidRequest: If a value does not fit its field; before any work.
    """
    across, down = (axis or Axis("", ("",)) for axis in axes)
    if len(across.values) * len(down.values) > MAX_CELLS:
        raise WrongFlag("--grid-x", f"the grid has more than {MAX_CELLS} cells")
    seed = secrets.randbits(32)  # one for all cells where nobody names one
    cells: list[GenerationRequest] = []
    for low in down.values:
        for high in across.values:
            changes = [(a.field, v) for a, v in ((across, high), (down, low)) if a.field]
            request = make(changes)
            if request.num_images != 1 or request.walk is not None:
                raise WrongFlag("--grid-x", "every cell is one picture; leave out -n and --walk-to")
            seeded = (
                request if request.seed is not None else dataclasses.replace(request, seed=seed)
            )
            cells.append(seeded)

    images = run(_draw(settings, cells))
    data = _lay_out([image.data for image in images], across, down, cells[0].output.format)
    sheet = dataclasses.replace(images[0], data=data, recipe={})
    named = dataclasses.replace(cells[0], prompt=f"grid {cells[0].prompt}")
    return destination.write(sheet, named)


async def _draw(settings: Settings, cells: Sequence[GenerationRequest]) -> list[ImageOutput]:
    """Draw all cells at once: the engine shares its calls between them."""
    async with open_service(settings) as service:
        results = await asyncio.gather(
            *(service.generate(request, request_id=new_id()) for request in cells)
        )
    return [result.images[0] for result in results]


def _lay_out(pictures: list[bytes], across: Axis, down: Axis, file_format: Any) -> bytes:
    """Put pictures of one or several sizes on a sheet with the values beside them."""
    from PIL import Image, ImageDraw, ImageFont

    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in pictures]
    width = max(p.width for p in opened) + _MARGIN_PX
    height = max(p.height for p in opened) + _MARGIN_PX
    font = ImageFont.load_default(13)
    labels = [_label(down.field, value) for value in down.values] if down.field else [""]
    left = max(int(font.getlength(label)) for label in labels) + 2 * _MARGIN_PX
    top = _LABEL_PX + _MARGIN_PX
    columns = len(across.values)
    size = (left + columns * width, top + len(down.values) * height)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, value in enumerate(across.values if across.field else ()):
        middle = left + column * width + (width - _MARGIN_PX) / 2
        draw.text((middle, _MARGIN_PX), _label(across.field, value), "black", font, anchor="ma")
    for row, label in enumerate(labels):
        middle = top + row * height + (height - _MARGIN_PX) / 2
        draw.text((_MARGIN_PX, middle), label, "black", font, anchor="lm")
    for number, picture in enumerate(opened):
        sheet.paste(picture, (left + number % columns * width, top + number // columns * height))
    stream = io.BytesIO()
    sheet.save(stream, file_format)
    return stream.getvalue()


def _label(field: str, value: Any) -> str:
    shown = value if isinstance(value, str) else json.dumps(value)
    return f"{field} {shown if len(shown) <= 24 else shown[:23] + '…'}"


def _value(text: str) -> Any:
    """Read one value: a number or JSON word if it is one, else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
