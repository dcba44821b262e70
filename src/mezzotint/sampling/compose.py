"""Composition: several prompts in one picture, each in its own region.

At every noise level each region has an estimate of the whole picture; they are
mixed per pixel with weights that sum to one everywhere, and the base prompt
fills what no region covers. That is one row per region and one for the base, not
a pair per region: the unconditional row is shared.

Theory: for a pixel that belongs to region n with weight w_n, sum_n w_n = 1, the mix
``sum_n w_n denoised_n`` is the minimiser of ``sum_n w_n |x - denoised_n|^2``: the picture
nearest to all estimates at once (Bar-Tal et al. 2023, arXiv:2302.08113, equation 5).
Weights that do not sum to one would add or take noise, which the next step mistakes
for signal; so they are divided by their sum, and what no region claims is the base's.

Masks are made in pixels, softened there, and averaged down to latents: an edge
that falls inside a latent cell is a share of that cell, not a step.

Dimensions: N regions, H and W pixels, h and w latent rows and columns.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from mezzotint.errors import InvalidRequest, ShapeError

__all__ = ["box_mask", "mix", "region_weights", "soften", "to_latent"]


def box_mask(box: Sequence[float], height: int, width: int) -> Tensor:
    """Draw a box given as fractions of the picture.

    Args:
        box: ``(x0, y0, x1, y1)``, 0 to 1, with x0 < x1 and y0 < y1.
        height: Pixels.
        width: Pixels.

    Returns:
        Share of each pixel that the box covers. Shape (H, W), float32, 0 to 1.
    """
    x0, y0, x1, y1 = box
    columns = _covered(x0 * width, x1 * width, width)
    rows = _covered(y0 * height, y1 * height, height)
    return rows[:, None] * columns[None, :]


def _covered(start: float, end: float, count: int) -> Tensor:
    """Return how much of each of ``count`` unit cells lies between two points."""
    cells = torch.arange(count, dtype=torch.float64)
    inside = torch.minimum(cells + 1, torch.tensor(end)) - torch.maximum(cells, torch.tensor(start))
    return inside.clamp(0, 1).float()


def soften(mask: Tensor, feather: float) -> Tensor:
    """Blur the edge of a mask.

    Args:
        mask: Shape (H, W), 0 to 1.
        feather: Width of the soft edge as a fraction of the shorter side, 0 to 1.

    Returns:
        Shape (H, W), 0 to 1; the edge keeps its place and the outside of the
        picture counts as more of the same.
    """
    radius = feather * min(mask.shape) / 2
    reach = math.ceil(radius)
    if reach < 1:
        return mask
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = (radius + 1 - offsets.abs()).clamp(min=0)
    kernel = (kernel / kernel.sum()).to(mask)
    image = mask[None, None]
    for axis in (2, 3):
        pad = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        shape = (1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)
        padded = functional.pad(image, pad, mode="replicate")
        image = functional.conv2d(padded, kernel.reshape(shape))
    return image[0, 0].clamp(0, 1)


def to_latent(mask: Tensor, rows: int, columns: int) -> Tensor:
    """Average a mask of pixels down to latent cells. Shape (1, h, w)."""
    return functional.adaptive_avg_pool2d(mask[None], (rows, columns))


def region_weights(masks: Tensor, weights: Sequence[float]) -> Tensor:
    """Turn masks into weights that sum to one at every place.

    Args:
        masks: Soft masks. Shape (N, 1, h, w), 0 to 1.
        weights: Relative weight of each region where they overlap, > 0.

    Returns:
        Weights of the base prompt and of each region. Shape (N + 1, 1, h, w),
        each >= 0, summing to 1 over the first dimension.

    Raises:
        ShapeError: If there is not one weight per mask.
        InvalidRequest: If a weight is not positive.
    """
    if masks.ndim != 4 or masks.shape[0] != len(weights):
        raise ShapeError(
            f"masks must have shape (N, 1, h, w) with one weight each, got {tuple(masks.shape)} "
            f"and {len(weights)} weights"
        )
    if any(not (math.isfinite(w) and w > 0) for w in weights):
        raise InvalidRequest(f"regions.weight must be > 0, got {list(weights)}", field="regions")
    if not weights:
        raise InvalidRequest("regions must hold at least one region", field="regions")
    scaled = masks.double() * torch.tensor(weights, dtype=torch.float64).reshape(-1, 1, 1, 1)
    covered = masks.double().sum(0, keepdim=True).clamp(max=1)
    total = scaled.sum(0, keepdim=True)
    shares = torch.where(total > 0, scaled / total.clamp(min=1e-300), 0.0) * covered
    return torch.cat([1 - covered, shares]).float()


def mix(estimates: Tensor, weights: Tensor) -> Tensor:
    """Mix the estimates of base and regions per pixel.

    Args:
        estimates: Shape (N + 1, C, h, w), base first.
        weights: What :func:`region_weights` made. Shape (N + 1, 1, h, w).

    Returns:
        Shape (1, C, h, w).
    """
    if estimates.shape[0] != weights.shape[0]:
        raise ShapeError(f"{estimates.shape[0]} estimates and {weights.shape[0]} weights")
    mixed = weights[:1] * estimates[:1]
    for k in range(1, estimates.shape[0]):  # in order, so that no sum depends on the batch
        mixed = mixed + weights[k : k + 1] * estimates[k : k + 1]
    return mixed
