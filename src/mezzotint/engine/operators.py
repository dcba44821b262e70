"""Operators: which rows an image sends into a network call, and what it makes of the answers.

A slot asks its operator for rows before a call and gives it their denoised
latents afterwards. Whatever a technique does to predictions is an operator, so
that it shares calls with everybody else's rows.

Dimensions: R rows of one image, then the shape of its latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mezzotint.models.base import Conditioning
from mezzotint.sampling.guidance import guide, rescaled

__all__ = ["ClassifierFree", "Operator"]


class Operator(Protocol):
    """Rows in, one estimate out; a pure function of its own image."""

    def rows(self, step: int) -> Sequence[Conditioning]:
        """Return the conditioning of each row of a step (from 1), each of one row."""
        ...

    def combine(self, step: int, denoised: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """Make one estimate of the answers.

        Args:
            step: As for :meth:`rows`.
            denoised: The rows' estimates, in the order of :meth:`rows`. Shape (R, ...).
            latents: What the network saw. Shape (1, ...).
            sigma: Noise level of ``latents``.

        Returns:
            Shape (1, ...).
        """
        ...


@dataclass(frozen=True, slots=True)
class ClassifierFree:
    """Classifier-free guidance: ``uncond + scale * (cond - uncond)``.

    Args:
        positive: Conditioning of the prompt.
        negative: Conditioning of the negative prompt; None while guidance is never on.
        scales: Scale of each step; 1 sends no negative row.
        rescale: Strength phi of the standard-deviation rescale, 0 is off.
        prediction_type: What the network predicts; the rescale is defined on it.
    """

    positive: Conditioning
    negative: Conditioning | None
    scales: tuple[float, ...]
    rescale: float = 0.0
    prediction_type: str = "epsilon"

    def rows(self, step: int) -> Sequence[Conditioning]:
        """Return the positive row, and the negative one where guidance is on."""
        if self.scales[step - 1] == 1 or self.negative is None:
            return (self.positive,)
        return (self.positive, self.negative)

    def combine(self, step: int, denoised: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """Guide; see :class:`Operator`."""
        if denoised.shape[0] == 1:
            return denoised
        positive, negative = denoised[:1], denoised[1:2]
        guided = guide(positive, negative, torch.tensor([self.scales[step - 1]]))
        if self.rescale == 0:
            return guided
        return rescaled(
            guided,
            positive,
            latents=latents,
            sigma=torch.tensor([sigma], dtype=torch.float64, device=latents.device),
            prediction_type=self.prediction_type,
            phi=torch.tensor([self.rescale]),
        )
