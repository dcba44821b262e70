"""Charts: curves on two logarithmic axes as a PNG, with nothing but Pillow."""

import io
import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw_lines"]

_WIDTH, _HEIGHT = 960, 600
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 24, 200, 56
_INK = (
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf",
    "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#000080", "#006400",
)  # fmt: skip

Point = tuple[float, float]


def draw_lines(curves: Mapping[str, Sequence[Point]], across: str, up: str) -> bytes:
    """Draw each curve over two logarithmic axes.

    Args:
        curves: Points (> 0) by name.
        across: Name of the horizontal axis.
        up: Name of the vertical axis.

    Returns:
        PNG.
    """
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)
    points = [(x, max(y, 1e-9)) for curve in curves.values() for x, y in curve]
    left, right = _ends([x for x, _ in points])
    low, high = _ends([y for _, y in points])

    def place(point: Point) -> Point:
        x = (math.log10(point[0]) - left) / (right - left)
        y = (math.log10(max(point[1], 1e-9)) - low) / (high - low)
        return (
            _LEFT + x * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y * (_HEIGHT - _TOP - _BOTTOM),
        )

    for power in range(math.ceil(left), math.floor(right) + 1):
        x, _ = place((10.0**power, 1.0))
        draw.line((x, _TOP, x, _HEIGHT - _BOTTOM), fill="#dddddd")
        draw.text((x, _HEIGHT - _BOTTOM + 6), f"{10**power:g}", "black", font, anchor="ma")
    for power in range(math.ceil(low), math.floor(high) + 1):
        _, y = place((1.0, 10.0**power))
        draw.line((_LEFT, y, _WIDTH - _RIGHT, y), fill="#dddddd")
        draw.text((_LEFT - 6, y), f"1e{power}", "black", font, anchor="rm")
    draw.rectangle((_LEFT, _TOP, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM), outline="black")
    draw.text(((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 24), across, "black", font, anchor="ma")
    draw.text((8, 4), up, "black", font)
    for number, (name, curve) in enumerate(curves.items()):
        ink = _INK[number % len(_INK)]
        placed = [place(point) for point in curve]
        draw.line(placed, fill=ink, width=2)
        for x, y in placed:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=ink)
        draw.text((_WIDTH - _RIGHT + 16, _TOP + 20 * number), name, ink, font)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the powers of ten around some values, never the same twice."""
    low, high = math.log10(min(values)), math.log10(max(values))
    return (low - 0.1, high + 0.1)
