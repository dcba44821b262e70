"""Solvers: tables of coefficients that move latents down the noise levels.

A solver keeps its state in registers: register 0 is the latents that the network
sees next, the others are history. At each network call the new registers are
linear in the old ones, in what the network said, and in fresh noise. A table
holds those coefficients for a whole run, so a batch of images at different steps
of different solvers is one elementwise update (:func:`advance`).

Theory: every multistep or multistage solver of ``dx/dsigma = (x - denoised) / sigma`` is
linear in what it knows. With registers r, latents ``x = r_0`` and the estimate d of one
network call, ``r'_i = sum_j A_ij r_j + b_i d + c_i (x - d) + e_i (x - raw) + n_i noise``,
where raw is the estimate before the model's clipping. The whole of a solver is one such
matrix of R rows and R + 4 columns after the other, and images at different rows of
different tables are one product. Coefficients are computed once a run, in float64.

A solver never calls the network and never draws noise. How each one fills its
table is in :mod:`mezzotint.sampling.rules`; tables are made in
:mod:`mezzotint.sampling.run_tables`.

Dimensions: B images, R registers, E evaluations, then any rank.
"""

import torch
from torch import Tensor

from mezzotint.errors import ShapeError
from mezzotint.sampling.run_tables import (
    SCHEDULERS,
    Clip,
    Scheduler,
    SolverTable,
    plan_table,
    tabulate,
)
from mezzotint.sampling.tables import REGISTERS, Evaluation

__all__ = [
    "REGISTERS",
    "SCHEDULERS",
    "Clip",
    "Evaluation",
    "Scheduler",
    "SolverTable",
    "advance",
    "clip_denoised",
    "plan_table",
    "tabulate",
]


def clip_denoised(denoised: Tensor, clip: Clip) -> Tensor:
    """Apply a model's clipping to one batch of estimates. Shape (B, ...), unchanged.

    Source: Saharia et al. 2022 (arXiv:2205.11487), section 2.3, for thresholding.
    """
    if clip.quantile is not None:
        flat = denoised.flatten(1)
        limits = [torch.quantile(row.abs(), clip.quantile) for row in flat]
        limit = torch.stack(limits).clamp(1, clip.maximum).unsqueeze(1)
        return (torch.clamp(flat, -limit, limit) / limit).reshape(denoised.shape)
    if clip.limit is not None:
        return denoised.clamp(-clip.limit, clip.limit)
    return denoised


def advance(
    registers: Tensor,
    denoised: Tensor,
    coefficients: Tensor,
    *,
    raw: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Move every image one evaluation down its own table.

    Elementwise only, so an image's answer does not depend on its neighbours.

    Args:
        registers: State of each image. Shape (B, R, ...), float32.
        denoised: Estimate of the clean latents, clipped where the model asks
            for it. Shape (B, ...), float32.
        coefficients: ``Evaluation.tensor()`` of each image. Shape (B, R, R + 4).
        raw: The estimate before clipping; ``denoised`` if None.
        noise: Fresh standard noise; needed where its coefficient is not 0.

    Returns:
        New registers. Shape (B, R, ...), float32.

    Raises:
        ShapeError: If the shapes do not fit together.
    """
    batch, count = registers.shape[:2]
    if denoised.shape != registers[:, 0].shape or coefficients.shape != (batch, count, count + 4):
        raise ShapeError(
            f"registers {tuple(registers.shape)}, denoised {tuple(denoised.shape)} and "
            f"coefficients {tuple(coefficients.shape)} do not fit together"
        )
    gap = registers[:, 0] - denoised
    raw_gap = gap if raw is None else registers[:, 0] - raw
    inputs = [*registers.unbind(1), denoised, gap, raw_gap, noise]
    weights = coefficients.reshape(*coefficients.shape, *([1] * (denoised.ndim - 1)))
    counts = (coefficients != 0).sum(0).cpu().numpy().tolist()  # of images, for each coefficient
    rows: list[Tensor] = []
    for k in range(count):
        total = torch.zeros_like(denoised)
        for column, value in enumerate(inputs):
            if value is None or not counts[k][column]:
                continue
            weight = weights[:, k, column]
            product = value * weight
            if counts[k][column] < batch:  # where it is 0 even what is not finite counts nothing
                product = torch.where(weight != 0, product, 0.0)
            total = total + product
        rows.append(total)
    return torch.stack(rows, dim=1)
