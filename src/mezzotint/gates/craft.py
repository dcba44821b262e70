"""Craft gate: the aesthetic gate that is built in, a small head on counted statistics.

It was trained to put pictures as they are above spoilt ones: blurred, coarse, noisy,
over-compressed, too dark or bright, faint, burnt, tinted, banded, cut up and shuffled, or
of nothing. No votes of people are in it, so it tells craft from its lack, not taste: of two
well-made pictures it says little. ``training/aesthetic`` has the training and its figures.
"""

from importlib import resources
from typing import Any

import numpy as np
from safetensors.numpy import load

from mezzotint.gates.base import GateInfo, Score
from mezzotint.gates.statistics import measure

__all__ = ["AESTHETIC", "CraftGate"]

AESTHETIC = GateInfo(
    name="aesthetic",
    doc="how well made a picture looks, 1 to 10, higher is better; a head of the user's own on "
    "CLIP's picture embedding takes its place",
    default_threshold=5.0,
    passes_below=False,
    spread=1.0,
)
_FURTHEST = 4.0  # standard deviations that a statistic may be from the training's mean


class CraftGate:
    """How far a picture is from a spoilt one, from 1 to 10."""

    info = AESTHETIC

    def __init__(self) -> None:
        stored = resources.files("mezzotint.gates") / "weights" / "craft_head.safetensors"
        self._head = {k: v.astype(np.float64) for k, v in load(stored.read_bytes()).items()}

    def score(self, pixels: Any) -> Score:
        """Measure a picture of shape (H, W, 3), uint8."""
        head = self._head
        standard = (measure(pixels) - head["mean"]) / head["deviation"]
        standard = np.clip(standard, -_FURTHEST, _FURTHEST)
        hidden = np.tanh(head["hidden.weight"] @ standard + head["hidden.bias"])
        value = float((head["out.weight"] @ hidden + head["out.bias"])[0])
        points = 1 + 9 / (1 + float(np.exp(-value)))
        return Score(points, f"looks made with care: {points:.1f} of 10")
