"""Reuse: what one evaluation of an image leaves for the next one.

Deep features of a U-Net, and the change that the prompt makes to a prediction. Both
belong to one image and are kept in its slot. A prediction's scale goes with the noise
level, so the change is kept per unit of it.

Dimensions: one image, then the shape of its latents.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mezzotint.engine.execution.operators import ClassifierFree, Operator, Row
from mezzotint.engine.execution.slots import Slot
from mezzotint.errors import WorkFailed
from mezzotint.models.backends.step_cache import DEEP
from mezzotint.sampling.denoiser import prediction_scale

__all__ = ["estimate", "is_reusing", "remember", "rows_of"]


def is_reusing(slot: Slot) -> bool:
    """Tell whether the next evaluation of an image reuses what the last one found."""
    reused = slot.plan.reused
    return bool(reused) and slot.solver is not None and reused[slot.solver.position]


def rows_of(slot: Slot, operator: Operator, step: int) -> Sequence[Row]:
    """Return the rows of an image's next evaluation."""
    rows = operator.rows(step)
    if not is_reusing(slot):
        return rows
    first = rows[0]
    if slot.deep is None:
        return (first,)
    return (Row(first.conditioning.replace(**{DEEP: slot.deep}), first.member),)


def estimate(slot: Slot, operator: Operator, step: int, denoised: Tensor) -> Tensor:
    """Make one estimate of an image's answers.

    Args:
        slot: The image.
        operator: Its operator.
        step: Step of its next evaluation, from 1.
        denoised: Answers to its rows. Shape (R, ...).

    Returns:
        Shape (1, ...).
    """
    assert slot.solver is not None  # noqa: S101 - only images with steps are stepped
    latents, sigma = slot.solver.latents, slot.solver.sigma
    if (
        not is_reusing(slot)
        or not isinstance(operator, ClassifierFree)
        or len(operator.rows(step)) < 2
    ):
        return operator.combine(step, denoised, latents, sigma)
    if slot.change is None:
        raise WorkFailed("guidance was to be reused before it was computed")
    change = slot.change * _scale(slot, sigma)
    return operator.guide(step, denoised, denoised - change, latents, sigma)


def remember(slot: Slot, sigma: float, denoised: Tensor, deep: Tensor | None) -> None:
    """Keep what the next evaluation may reuse.

    Args:
        slot: The image, in ``turbo``.
        sigma: Noise level of the evaluation that was done.
        denoised: Answers to its rows, the prompt's first. Shape (R, ...).
        deep: Deep features of its rows. Shape (R, ...), or None.
    """
    if not slot.plan.reused:
        return
    if deep is not None:
        slot.deep = deep[:1].clone()
    if len(denoised) > 1:
        slot.change = (denoised[:1] - denoised[1:2]) / _scale(slot, sigma)


def _scale(slot: Slot, sigma: float) -> float:
    """Return how much a denoised estimate moves per unit of the network's answer."""
    kind = slot.model.spec.prediction_type
    return float(prediction_scale(torch.tensor([sigma], dtype=torch.float64), kind))
