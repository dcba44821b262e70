"""Operators: which rows an image sends into a network call, and what it makes of the answers.

A slot asks its operator for rows before a call and gives it their denoised
latents afterwards. Whatever a technique does to predictions is an operator, so
that it shares calls with everybody else's rows.

Dimensions: R rows of one image, then the shape of its latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mezzotint.engine.execution.prompts import Steered, at_step
from mezzotint.models.base import Conditioning
from mezzotint.sampling import ensemble
from mezzotint.sampling.compose import mix, region_weights
from mezzotint.sampling.guidance import guide, normalised, rescaled

__all__ = ["ClassifierFree", "Controlled", "Ensemble", "Operator", "Region", "Regions", "Row"]


class Row(NamedTuple):
    """One row of an image: its conditioning (one row) and which denoiser it is for."""

    conditioning: Conditioning
    member: int = 0


class Operator(Protocol):
    """Rows in, one estimate out; a pure function of its own image."""

    def rows(self, step: int) -> Sequence[Row]:
        """Return the rows of a step (from 1)."""
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
        positive: What the prompt became.
        negative: What the negative prompt became; None while guidance is never on.
        scales: Scale of each step; 1 sends no negative row.
        rescale: Strength phi of the standard-deviation rescale, 0 is off.
        prediction_type: What the network predicts; the rescale is defined on it.
        norm_block: Channels, rows and columns of the blocks that keep the length they have
            without guidance, 0 for all; None for no such blocks.
    """

    positive: Steered
    negative: Steered | None
    scales: tuple[float, ...]
    rescale: float = 0.0
    prediction_type: str = "epsilon"
    norm_block: tuple[int, int, int] | None = None

    def rows(self, step: int) -> Sequence[Row]:
        """Return the positive row, and the negative one where guidance is on."""
        positive = Row(at_step(self.positive, step))
        if self.scales[step - 1] == 1 or self.negative is None:
            return (positive,)
        return (positive, Row(at_step(self.negative, step)))

    def combine(self, step: int, denoised: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """Guide; see :class:`Operator`."""
        if denoised.shape[0] == 1:
            return denoised
        return self.guide(step, denoised[:1], denoised[1:2], latents, sigma)

    def guide(
        self, step: int, positive: Tensor, negative: Tensor, latents: Tensor, sigma: float
    ) -> Tensor:
        """Combine an estimate with the prompt and one without. Each of shape (1, ...)."""
        guided = guide(positive, negative, torch.tensor([self.scales[step - 1]]))
        if self.norm_block is None and self.rescale == 0:
            return guided
        level = torch.tensor([sigma], dtype=torch.float64, device=latents.device)
        if self.norm_block is not None and self.scales[step - 1] != 1:
            guided = normalised(
                guided,
                positive,
                latents=latents,
                sigma=level,
                prediction_type=self.prediction_type,
                block=self.norm_block,
            )
        if self.rescale == 0:
            return guided
        return rescaled(
            guided,
            positive,
            latents=latents,
            sigma=level,
            prediction_type=self.prediction_type,
            phi=torch.tensor([self.rescale]),
        )


@dataclass(frozen=True, slots=True)
class Region:
    """One region of a picture.

    Args:
        positive: What its prompt became.
        negative: Position of its negative prompt among the regions' own, or None
            for the base's.
        mask: Where it acts. Shape (1, h, w), 0 to 1.
        weight: Relative weight where regions overlap.
        start: Progress at which it begins to act.
        end: Progress at which it stops.
    """

    positive: Steered
    negative: int | None
    mask: Tensor
    weight: float
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Regions:
    """Regional prompts over a base prompt: N + 1 rows, and one unconditional for all.

    Args:
        base: Guidance of the base prompt.
        regions: The regions.
        negatives: What the regions' own negative prompts became, each once.
    """

    base: ClassifierFree
    regions: tuple[Region, ...]
    negatives: tuple[Steered, ...]

    def _active(self, step: int) -> list[Region]:
        last = max(len(self.base.scales) - 1, 1)
        progress = (step - 1) / last
        return [r for r in self.regions if r.start <= progress <= r.end]

    def _own_negatives(self, active: Sequence[Region]) -> list[int]:
        """Return which of the regions' own negative prompts are needed, in order."""
        return sorted({r.negative for r in active if r.negative is not None})

    def rows(self, step: int) -> Sequence[Row]:
        """Return base and regions, then the negatives where guidance is on."""
        active = self._active(step)
        steered = [self.base.positive, *(r.positive for r in active)]
        if self.base.scales[step - 1] != 1 and self.base.negative is not None:
            steered.append(self.base.negative)
            steered += [self.negatives[k] for k in self._own_negatives(active)]
        return [Row(at_step(one, step)) for one in steered]

    def combine(self, step: int, denoised: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """Mix the regions per pixel, then guide; see :class:`Operator`."""
        active = self._active(step)
        count = 1 + len(active)
        if not active:
            return self.base.combine(step, denoised, latents, sigma)
        masks = torch.stack([r.mask for r in active])
        shares = region_weights(masks, [r.weight for r in active]).to(denoised)
        positive = mix(denoised[:count], shares)
        if denoised.shape[0] == count:
            return positive
        own = {k: count + 1 + place for place, k in enumerate(self._own_negatives(active))}
        places = [count, *(count if r.negative is None else own[r.negative] for r in active)]
        negative = mix(denoised[places], shares)
        return self.base.guide(step, positive, negative, latents, sigma)


@dataclass(frozen=True, slots=True)
class Controlled:
    """ControlNets that act at some steps: each row carries the step's scales.

    Args:
        inner: What makes the estimate.
        name: Name of the scales among the conditioning's tensors.
        scales: For each step one scale per ControlNet, 0 where it does not act. Each
            of shape (1, K).
    """

    inner: Operator
    name: str
    scales: tuple[Tensor, ...]

    def rows(self, step: int) -> Sequence[Row]:
        """Return the rows with this step's scales."""
        scales = {self.name: self.scales[step - 1]}
        return [
            Row(row.conditioning.replace(**scales), row.member) for row in self.inner.rows(step)
        ]

    def combine(self, step: int, denoised: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """Leave it to the inner operator; see :class:`Operator`."""
        return self.inner.combine(step, denoised, latents, sigma)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Several denoisers as one; each member has an operator and conditionings of its own.

    Args:
        members: One operator per denoiser.
        weights: For each step the weights of the members, summing to 1.
        masks: For each member where it is asked, None for everywhere; () if all are.
            Each of shape (1, h, w), 0 to 1.
    """

    members: tuple[Operator, ...]
    weights: tuple[tuple[float, ...], ...]
    masks: tuple[Tensor | None, ...] = ()

    def _asked(self, step: int) -> list[int]:
        return [k for k, weight in enumerate(self.weights[step - 1]) if weight != 0]

    def rows(self, step: int) -> Sequence[Row]:
        """Return the rows of every member whose weight is not 0."""
        return [
            Row(row.conditioning, member)
            for member in self._asked(step)
            for row in self.members[member].rows(step)
        ]

    def combine(self, step: int, denoised: Tensor, latents: Tensor, sigma: float) -> Tensor:
        """Return the weighted mean of the members' estimates; see :class:`Operator`.

        Members with a mask take the place of those without where it covers, as
        regions take that of the base prompt.
        """
        asked = self._asked(step)
        counts = [len(self.members[member].rows(step)) for member in asked]
        estimates = [
            self.members[member].combine(step, part, latents, sigma)
            for member, part in zip(asked, torch.split(denoised, counts), strict=True)
        ]
        weights = [self.weights[step - 1][member] for member in asked]
        places = [self.masks[member] if self.masks else None for member in asked]
        if all(place is None for place in places):
            return ensemble.combine(estimates, weights)
        found = list(zip(estimates, weights, places, strict=True))
        whole = [(estimate, weight) for estimate, weight, place in found if place is None]
        total = sum(weight for _, weight in whole)
        base = ensemble.combine([e for e, _ in whole], [weight / total for _, weight in whole])
        local = [(e, weight, place) for e, weight, place in found if place is not None]
        masks = torch.stack([place for _, _, place in local])
        shares = region_weights(masks, [weight for _, weight, _ in local]).to(base)
        return mix(torch.cat([base, *(estimate for estimate, _, _ in local)]), shares)
