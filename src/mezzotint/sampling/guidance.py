"""Guidance: combine what the network said with and without the prompt.

Nothing here calls a network: the rows of an image ride in one batch with
everybody else's, and are combined afterwards. The convention is
``uncond + scale * (cond - uncond)``: 1 is off and needs no unconditional row.

Theory: sampling from ``p(x) p(c | x)^s`` needs the score of that density, which by
Bayes is ``grad log p(x) + s (grad log p(x | c) - grad log p(x))`` (Ho and Salimans
2021, arXiv:2207.12598). A score and a clean estimate are linear in each other,
``grad log p(x) = (denoised - x) / sigma^2``, so estimates are combined as scores are.
For s > 1 the sum leaves the spread that estimates have: :func:`rescaled` brings the
standard deviation of the guided prediction back to that of the conditional one and
mixes both by phi (Lin et al. 2023, arXiv:2305.08891, section 3.4).

Dimensions: B images, then any rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mezzotint.errors import ShapeError
from mezzotint.sampling.denoiser import denoised_from_prediction, prediction_from_denoised

__all__ = ["guide", "normalised", "rescaled"]


def guide(cond: Tensor, uncond: Tensor, scale: Tensor) -> Tensor:
    """Combine two estimates of each image.

    Args:
        cond: Estimates with the prompt. Shape (B, ...).
        uncond: Estimates with the negative prompt. Same shape.
        scale: Guidance scale of each image. Shape (B,).

    Returns:
        ``uncond + scale * (cond - uncond)``; bitwise ``cond`` where the scale is 1.

    Raises:
        ShapeError: If the shapes differ or there is not one scale per image.

    Source: Ho and Salimans 2022 (arXiv:2207.12598), equation 6, shifted by one.
    It holds for epsilon, v and denoised alike, since each is an affine function
    of the others at one noise level.
    """
    if cond.shape != uncond.shape or scale.shape != cond.shape[:1]:
        raise ShapeError(
            f"cond {tuple(cond.shape)}, uncond {tuple(uncond.shape)} and scale "
            f"{tuple(scale.shape)} do not fit together"
        )
    weight = scale.to(cond).reshape(-1, *([1] * (cond.ndim - 1)))
    return torch.where(weight == 1, cond, uncond + weight * (cond - uncond))


def rescaled(
    guided: Tensor,
    cond: Tensor,
    *,
    latents: Tensor,
    sigma: Tensor,
    prediction_type: str,
    phi: Tensor,
) -> Tensor:
    """Pull the spread of a guided prediction back towards the unguided one.

    Args:
        guided: Guided estimates of the clean latents. Shape (B, ...).
        cond: Estimates with the prompt alone. Same shape.
        latents: What the network saw, in the model's frame. Same shape.
        sigma: Noise level of each image. Shape (B,).
        prediction_type: What the network predicts; the spread is that of the
            network's own output, as in the paper and in diffusers.
        phi: Strength of each image, 0 off to 1 full. Shape (B,).

    Returns:
        Estimates of the clean latents. Same shape.

    Source: Lin et al. 2023 (arXiv:2305.08891), section 3.4, equations 14 to 16.
    """
    said = prediction_from_denoised(guided, latents, sigma, prediction_type)
    plain = prediction_from_denoised(cond, latents, sigma, prediction_type)
    shape = (-1, *([1] * (said.ndim - 1)))
    # row by row: a reduction over a whole batch may add up in another order than one alone
    ratios = [p.std() / s.std() for p, s in zip(plain, said, strict=True)]
    spread = torch.stack(ratios).reshape(shape)
    weight = phi.to(said).reshape(shape)
    mixed = weight * (said * spread) + (1 - weight) * said
    changed = denoised_from_prediction(mixed, latents, sigma, prediction_type)
    return torch.where(weight == 0, guided, changed)


def normalised(
    guided: Tensor,
    cond: Tensor,
    *,
    latents: Tensor,
    sigma: Tensor,
    prediction_type: str,
    block: tuple[int, int, int],
) -> Tensor:
    """Give each block of a guided prediction the length that it has with the prompt alone.

    Args:
        guided: Guided estimates of the clean latents. Shape (B, C, h, w).
        cond: Estimates with the prompt alone. Same shape.
        latents: What the network saw, in the model's frame. Same shape.
        sigma: Noise level of each image. Shape (B,).
        prediction_type: What the network predicts; the length is that of its own output.
        block: Channels, rows and columns of a block, 0 for all; each divides its side.

    Returns:
        Estimates of the clean latents. Same shape.

    Source: the pipelines of Qwen-Image, where a block is a token, and of Lumina 2, where it is
    a row of one channel, in diffusers 0.42.
    """
    said = prediction_from_denoised(guided, latents, sigma, prediction_type)
    plain = prediction_from_denoised(cond, latents, sigma, prediction_type)
    sides = [side or whole for side, whole in zip(block, said.shape[1:], strict=True)]
    ratio = (_lengths(plain, sides) / _lengths(said, sides)).nan_to_num(1.0, 1.0, 1.0)
    for axis, side in enumerate(sides, start=1):
        ratio = ratio.repeat_interleave(side, dim=axis)
    return denoised_from_prediction(said * ratio, latents, sigma, prediction_type)


def _lengths(prediction: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the Euclidean length of each block. Shape (B, C / c, h / rows, w / columns)."""
    count, *whole = prediction.shape
    shape = [n for one, side in zip(whole, sides, strict=True) for n in (one // side, side)]
    return prediction.reshape(count, *shape).square().sum(dim=(2, 4, 6)).sqrt()
