"""Tables: what a rule writes, and what rules share.

A table is one :class:`Evaluation` for each network call: where the network is called, and
the coefficients of the update after it (:mod:`mezzotint.sampling.solvers` applies them).

Plain numbers: torch is loaded where a row becomes a tensor, so that a plan can be checked
against its solver without it.

Dimensions: R registers of an image, N steps counted from 0 by k.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mezzotint.sampling.timesteps import Schedule

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "COLUMNS",
    "REGISTERS",
    "Evaluation",
    "Row",
    "Rule",
    "evaluation",
    "last_alpha",
    "log_snr",
    "scaled",
    "weights",
]

REGISTERS = 4
"""Registers of every image, so that any mix of solvers stacks."""

Row = Mapping[str, float]
"""One new register: coefficients by ``r0``..``r3``, ``d`` (denoised, clipped if the
model says so), ``gap`` (r0 - d), ``raw_gap`` (r0 minus denoised before clipping) and
``n`` (noise). Gaps are formed before they are divided by small noise levels."""

COLUMNS = (*(f"r{k}" for k in range(REGISTERS)), "d", "gap", "raw_gap", "n")
"""The columns of a row, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One network call and the update after it.

    Args:
        step: User step it belongs to, counted from 1.
        sigma: Noise level of register 0 when the network is called.
        timestep: What the network is told.
        coefficients: R rows of R + 4 numbers, see :data:`Row` for the columns.
        draws_noise: Whether a fresh noise tensor is drawn for this update, even
            if its coefficient is 0: the stream of a generator must not depend on it.
    """

    step: int
    sigma: float
    timestep: float
    coefficients: tuple[tuple[float, ...], ...]
    draws_noise: bool = False

    def tensor(self) -> "Tensor":
        """Return the coefficients as float32, shape (R, R + 4)."""
        import torch

        return torch.tensor(self.coefficients, dtype=torch.float64).float()


Rule = Callable[[Schedule, Mapping[str, Any], int], list[Evaluation]]
"""Fills a table: ``(noise levels, scheduler configuration, first step) -> evaluations``."""


def weights(**coefficients: float) -> tuple[float, ...]:
    """Return one new register from coefficients by the names of :data:`Row`; others are 0."""
    return tuple(coefficients.get(name, 0.0) for name in COLUMNS)


def _rows(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Fill up with registers that stay 0."""
    return (*rows, *(weights() for _ in range(REGISTERS - len(rows))))


def evaluation(
    schedule: Schedule,
    k: int,
    *rows: tuple[float, ...],
    first: int,
    draws_noise: bool = False,
    at: int | None = None,
    between: tuple[float, float] | None = None,
) -> Evaluation:
    """Make the evaluation of step k.

    Args:
        schedule: The noise levels of the run.
        k: The step, counted from 0.
        rows: The new registers; those that are not given become 0.
        first: Step that the run begins at.
        draws_noise: Whether fresh noise is drawn for the update.
        at: Index of another noise level than the step's own.
        between: ``(sigma, timestep)`` of a call at none of the run's levels.
    """
    level = k if at is None else at
    sigma, timestep = between or (schedule.sigmas[level], schedule.timesteps[level])
    return Evaluation(
        step=k - first + 1,
        sigma=sigma,
        timestep=timestep,
        coefficients=_rows(*rows),
        draws_noise=draws_noise,
    )


def log_snr(schedule: Schedule, k: int) -> float:
    """Return lambda = log(alpha / sigma), infinite at sigma 0."""
    sigma = schedule.sigmas[k]
    alpha = 1 - sigma if schedule.frame == "flow" else 1.0
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def last_alpha(schedule: Schedule, k: int) -> float:
    """Return sqrt(alpha_bar) after the last step, 1 before: pictures are decoded as they end."""
    if schedule.frame == "flow" or k + 1 < schedule.num_steps:
        return 1.0
    return 1 / math.sqrt(1 + schedule.sigmas[-1] ** 2)


def scaled(row: tuple[float, ...], factor: float) -> tuple[float, ...]:
    """Multiply every coefficient of a row."""
    return tuple(factor * value for value in row)
