"""Sheets: several pictures side by side on one, as galleries and papers show them."""

import math
from collections.abc import Sequence

import numpy as np

from mezzotint.errors import ShapeError

__all__ = ["make_sheet"]


def make_sheet(
    pictures: Sequence[np.ndarray], *, columns: int | None = None, gap_px: int = 2, level: int = 0
) -> np.ndarray:
    """Lay pictures of one size on a grid, row by row.

    A single picture stays as it is. The default layout and gap are those of
    torchvision's ``save_image`` (8 columns, 2 px around every picture).

    Args:
        pictures: Each (H, W, 3), uint8.
        columns: Pictures a row; None is the smaller of 8 and their number.
        gap_px: Pixels between pictures and around them.
        level: Grey level of the gaps.

    Returns:
        Shape (rows * (H + gap) + gap, columns * (W + gap) + gap, 3), uint8.

    Raises:
        ShapeError: If there are no pictures or their sizes differ.
    """
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1:
        raise ShapeError(f"a sheet needs pictures of one size, got {sorted(shapes) or 'none'}")
    if len(pictures) == 1:
        return pictures[0]
    height, width, channels = shapes.pop()
    columns = min(columns or 8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    full = (rows * (height + gap_px) + gap_px, columns * (width + gap_px) + gap_px, channels)
    sheet = np.full(full, level, np.uint8)
    for number, picture in enumerate(pictures):
        top = gap_px + (number // columns) * (height + gap_px)
        left = gap_px + (number % columns) * (width + gap_px)
        sheet[top : top + height, left : left + width] = picture
    return sheet
