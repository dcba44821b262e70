"""Plots: numbers as small pictures, so that any run can be looked at.

Every row is drawn on its own with scales from the training data, never from
the row, so that two pictures can be compared.

Dimensions: B rows, D features, C channels, L length, H and W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["draw_fields", "draw_points", "draw_series"]

_INK = ((-0.75, -0.45, 0.2), (0.75, -0.35, -0.6), (-0.5, 0.3, -0.5), (0.6, 0.3, -0.8))


def _fractions(values: Tensor, statistics: "object") -> Tensor:
    """Place values of (B, C, ...) in [0, 1] between the channel's extremes."""
    low = torch.tensor(getattr(statistics, "low", ()) or (-1.0,)).to(values)
    high = torch.tensor(getattr(statistics, "high", ()) or (1.0,)).to(values)
    shape = (1, -1, *([1] * (values.ndim - 2)))
    low, high = low.reshape(shape), high.reshape(shape)
    return ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def draw_points(values: Tensor, statistics: object) -> Tensor:
    """Draw each point as a dot (first two features), or as a bar if it has one.

    Returns:
        Shape (B, 3, 64, 64), float32 in [-1, 1].
    """
    place = _fractions(values, statistics)
    axis = torch.linspace(0, 1, 64)
    across = (axis[None, None, :] - place[:, 0, None, None]) ** 2
    if values.shape[1] > 1:
        across = across + (axis.flip(0)[None, :, None] - place[:, 1, None, None]) ** 2
    ink = torch.exp(-across / (2 * 0.03**2)).expand(-1, 64, 64)
    return _paint(ink, _INK[0], torch.ones(len(values), 3, 64, 64))


def draw_series(values: Tensor, statistics: object) -> Tensor:
    """Draw each series as a curve, one colour per channel.

    Returns:
        Shape (B, 3, 128, 256), float32 in [-1, 1].
    """
    place = F.interpolate(
        _fractions(values, statistics), size=256, mode="linear", align_corners=True
    )
    rows = torch.linspace(1, 0, 128)[None, :, None]
    picture = torch.ones(len(values), 3, 128, 256)
    for channel in range(values.shape[1]):
        curve = place[:, channel]
        low = torch.minimum(curve, curve.roll(1, 1))
        high = torch.maximum(curve, curve.roll(1, 1))
        low[:, 0], high[:, 0] = curve[:, 0], curve[:, 0]
        away = (low[:, None] - rows).clamp_min(0) + (rows - high[:, None]).clamp_min(0)
        picture = _paint(torch.exp(-((away / 0.008) ** 2)), _INK[channel % len(_INK)], picture)
    return picture


def draw_fields(values: Tensor, statistics: object) -> Tensor:
    """Draw each field: three channels as red, green, blue, otherwise the first as grey.

    Returns:
        Shape (B, 3, H, W), float32 in [-1, 1].
    """
    place = _fractions(values, statistics) * 2 - 1
    return place if place.shape[1] == 3 else place[:, :1].expand(-1, 3, -1, -1).contiguous()


def _paint(ink: Tensor, colour: tuple[float, float, float], picture: Tensor) -> Tensor:
    """Lay a colour over a picture where there is ink. Ink (B, H, W) in [0, 1]."""
    tint = torch.tensor(colour).reshape(1, 3, 1, 1)
    return picture + ink[:, None] * (tint - picture)
