"""Ensembles: several denoisers answer as one.

Each member says what it believes the clean latents are; the belief of the
ensemble is their weighted mean. Members are converted to that common language
before they meet, so an epsilon model and a v model may stand together as long as
they share a latent space.

Theory: the mean of clean estimates with weights that sum to one is the estimate under
the product of the members' densities, each to the power of its weight, since their
scores add: ``sum_m w_m (denoised_m - x) / sigma^2``. Weights that sum to anything else
would scale the noise along with the picture; they are divided by their sum.

Dimensions: M members, S steps, then any rank.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest, ShapeError

__all__ = ["check_members", "combine", "member_weights"]


def member_weights(
    weights: Sequence[Sequence[float]], num_steps: int
) -> tuple[tuple[float, ...], ...]:
    """Normalise the weights of an ensemble, step by step.

    Args:
        weights: For each member one weight, or one per step, >= 0.
        num_steps: S.

    Returns:
        For each step the weights of the members, summing to 1.

    Raises:
        InvalidRequest: If a member has neither 1 nor S weights, a weight is
            negative or not finite, or all are 0 at some step.

    Example:
        >>> member_weights([[0.7], [0.7]], 1)
        ((0.5, 0.5),)
    """
    for k, own in enumerate(weights):
        if len(own) not in (1, num_steps):
            raise InvalidRequest(
                f"ensemble[{k}].weights must have one weight per step that is run ({num_steps}), "
                f"got {len(own)}",
                field=f"ensemble[{k}].weights",
                value=len(own),
                allowed=str(num_steps),
            )
        if any(not (math.isfinite(w) and w >= 0) for w in own):
            raise InvalidRequest(
                f"ensemble[{k}].weights must be finite and >= 0, got {list(own)}",
                field=f"ensemble[{k}].weights",
            )
    result: list[tuple[float, ...]] = []
    for step in range(num_steps):
        row = [own[step if len(own) > 1 else 0] for own in weights]
        total = sum(row)
        if total <= 0:
            raise InvalidRequest(
                f"ensemble weights must not all be 0, but they are at step {step + 1}",
                field="ensemble",
            )
        result.append(tuple(w / total for w in row))
    return tuple(result)


def combine(estimates: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return the weighted mean of the members' estimates.

    Args:
        estimates: Estimates of the clean latents. Each of shape (B, ...).
        weights: One per member, summing to 1; members of weight 0 need not have
            been asked, and their estimate is ignored.

    Returns:
        Shape (B, ...).

    Raises:
        ShapeError: If counts or shapes differ.
    """
    shapes = {tuple(estimate.shape) for estimate in estimates}
    if len(estimates) != len(weights) or len(shapes) != 1:
        raise ShapeError(
            f"an ensemble needs one estimate per weight, all of one shape, got {len(weights)} "
            f"weights and shapes {sorted(shapes)}"
        )
    mean = torch.zeros_like(estimates[0])
    for estimate, weight in zip(estimates, weights, strict=True):
        if weight:
            mean = mean + weight * estimate
    return mean


def check_members(spaces: Sequence[tuple[str, tuple[int, ...], str]]) -> None:
    """Refuse members that do not share a latent space.

    Args:
        spaces: For each member its name, the shape of its latents for the
            picture asked for, and the frame of its noise levels.

    Raises:
        InvalidRequest: If two differ; names both and what differs.
    """
    first = spaces[0]
    for other in spaces[1:]:
        for what, ours, theirs in (
            ("latents of shape", first[1], other[1]),
            ("noise levels in the frame", first[2], other[2]),
        ):
            if ours != theirs:
                raise InvalidRequest(
                    f"ensemble members must share their latent space: {first[0]} has {what} "
                    f"{ours}, {other[0]} has {theirs}",
                    field="ensemble",
                )
