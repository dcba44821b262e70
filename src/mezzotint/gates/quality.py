"""Quality gate: BRISQUE, a technical score without a reference picture.

It notices blur, noise and blocking, not beauty. 0 is pristine, about 100 is
destroyed. The regression was trained on photographs: flat drawings are outside
of it, so calibrate the threshold per model.

Source: Mittal, Moorthy, Bovik: No-Reference Image Quality Assessment in the
Spatial Domain, IEEE TIP 2012. The regression's numbers come from the PyPI
package brisque 0.2.0 (Apache-2.0).
"""

import math
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from mezzotint.gates.base import GateInfo, Score

__all__ = ["LUMINANCE", "QualityGate", "scene_statistics"]

Array = NDArray[np.float64]

LUMINANCE: Array = np.array([0.2125, 0.7154, 0.0721])
"""What red, green and blue give to the brightness of a pixel."""
_GAMMA, _RHO = 0.05, -155.845  # kernel width and offset of the regression
_FLAT = 1e-12
_FLAT_SCORE = 100.0


class QualityGate:
    """BRISQUE score of a picture; lower is better."""

    info = GateInfo(
        name="quality",
        doc="BRISQUE, technical quality: 0 pristine to about 100 destroyed",
        default_threshold=60.0,
        spread=30.0,
    )

    def __init__(self) -> None:
        stored = resources.files("mezzotint.gates") / "weights" / "brisque_svr.safetensors"
        tensors = load(stored.read_bytes())
        self._coefficients: Array = tensors["coefficients"].astype(np.float64)
        self._vectors: Array = tensors["support_vectors"].astype(np.float64)
        self._low: Array = tensors["feature_min"].astype(np.float64)
        self._high: Array = tensors["feature_max"].astype(np.float64)

    def score(self, pixels: Any) -> Score:
        """Measure a picture of shape (H, W, 3), uint8, at least 16 px on each side."""
        grey = np.asarray(pixels, dtype=np.float64) @ LUMINANCE / 255
        if min(grey.shape) < 16:
            return Score(_FLAT_SCORE, "too small to measure")
        if float(np.ptp(grey)) < 1 / 255:
            return Score(_FLAT_SCORE, "the picture is one flat colour")
        features = np.concatenate([scene_statistics(grey), scene_statistics(_halved(grey))])
        scaled = -1 + 2 / (self._high - self._low) * (features - self._low)
        distances = ((self._vectors - scaled) ** 2).sum(1)
        value = float(self._coefficients @ np.exp(-_GAMMA * distances) - _RHO)
        return Score(value, f"BRISQUE {value:.1f}")


def scene_statistics(grey: Array) -> Array:
    """Return the 18 statistics of one scale: of the normalised picture and its products.

    Args:
        grey: Brightness from 0 to 1, shape (H, W), at least 8 px on each side.
    """
    normalised = _normalised(grey)
    alpha, _, left, right = _fit(normalised)
    result = [alpha, (left + right) / 2]
    for product in (
        normalised[:, :-1] * normalised[:, 1:],
        normalised[:-1, :] * normalised[1:, :],
        normalised[:-1, :-1] * normalised[1:, 1:],
        normalised[1:, :-1] * normalised[:-1, 1:],
    ):
        result += _fit(product)
    return np.array(result)


def _normalised(grey: Array) -> Array:
    """Subtract the local mean and divide by the local deviation (7 px Gaussian window)."""
    mean = _blurred(grey)
    deviation = np.sqrt(np.abs(mean**2 - _blurred(grey**2)))
    return (grey - mean) / (deviation + 1 / 255)


def _blurred(grey: Array) -> Array:
    """Convolve with a 7 px Gaussian of sigma 7/6; outside the picture is black."""
    x = np.arange(-3, 4)
    kernel = np.exp(-(x**2) / (2 * (7 / 6) ** 2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padding = [(3, 3) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(grey, padding)
        length = grey.shape[axis]
        grey = sum(  # type: ignore[assignment]
            weight * np.take(padded, range(k, k + length), axis) for k, weight in enumerate(kernel)
        )
    return grey


def _halved(grey: Array) -> Array:
    """Halve a picture with the bicubic kernel of a = -0.75, edges repeated."""
    weights = (-0.09375, 0.59375, 0.59375, -0.09375)
    for axis in (0, 1):
        length = grey.shape[axis]
        starts = 2 * np.arange(round(length / 2)) - 1
        grey = sum(  # type: ignore[assignment]
            weight * np.take(grey, np.clip(starts + k, 0, length - 1), axis)
            for k, weight in enumerate(weights)
        )
    return grey


def _fit(x: Array) -> list[float]:
    """Fit an asymmetric generalised Gaussian by moments: shape, mean, left and right variance."""
    left = float((x[x < 0] ** 2).mean()) if (x < 0).any() else _FLAT
    right = float((x[x >= 0] ** 2).mean()) if (x >= 0).any() else _FLAT
    left, right = max(left, _FLAT), max(right, _FLAT)
    ratio = math.sqrt(left / right)
    moment = float(np.abs(x).mean() ** 2 / max(float((x**2).mean()), _FLAT))
    target = moment * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = _shape_for(target)
    scale = math.exp((math.lgamma(1 / alpha) - math.lgamma(3 / alpha)) / 2)
    spread = math.exp(math.lgamma(2 / alpha) - math.lgamma(1 / alpha))
    mean = (math.sqrt(right) - math.sqrt(left)) * scale * spread
    return [alpha, mean, left, right]


def _shape_for(target: float) -> float:
    """Solve gamma(2/a)^2 / (gamma(1/a) gamma(3/a)) = target for a, by bisection."""
    low, high = 0.05, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        value = math.exp(
            2 * math.lgamma(2 / middle) - math.lgamma(1 / middle) - math.lgamma(3 / middle)
        )
        low, high = (middle, high) if value < target else (low, middle)
    return (low + high) / 2
