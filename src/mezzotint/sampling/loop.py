"""The loop: noise in, clean latents out. Read this file first.

:func:`denoise` is everything that sampling is, for images that all follow one
table: call the network, combine, move. The engine does the same for images that
follow different tables, and is tested against it; the trainer samples with it.
:func:`sample` is the public face for any denoiser.

Theory: data noised to level sigma has the density p(x; sigma); along
``dx/dsigma = -sigma grad log p(x; sigma) = (x - denoised(x, sigma)) / sigma`` its
samples move from one level to the next without changing p (Karras et al. 2022,
arXiv:2206.00364, equations 1 and 3). A run starts from noise, where p is all but
Gaussian, and follows that equation, with fresh noise added and taken off again in
stochastic solvers, to sigma = 0, where p is the data.

Dimensions: B images, R registers, then any rank.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest, ShapeError
from mezzotint.sampling.denoiser import Denoiser, FunctionDenoiser
from mezzotint.sampling.latents import draw_noise
from mezzotint.sampling.sigma_curves import sigma_curve
from mezzotint.sampling.solvers import (
    REGISTERS,
    SCHEDULERS,
    SolverTable,
    advance,
    clip_denoised,
    tabulate,
)
from mezzotint.sampling.timesteps import Schedule

__all__ = ["Callback", "Combine", "denoise", "sample"]

Callback = Callable[[int, Tensor, Tensor], None]
"""Told ``(step index from 0, latents, denoised)`` after each network call."""

Combine = Callable[[Tensor, Tensor, int], Tensor]
"""Makes the estimate: ``(latents (B, ...), sigma (B,), step from 1) -> denoised``."""


def denoise(
    estimate: Combine,
    latents: Tensor,
    table: SolverTable,
    *,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Walk a table from noise to clean latents.

    Args:
        estimate: Answers with the estimate of the clean latents; calls the
            network and applies guidance as it likes.
        latents: Noisy latents at the table's first noise level. Shape (B, ...), float32.
        table: The run.
        generators: One CPU generator per image, for solvers that draw noise.
        callback: Called after each network call.

    Returns:
        Clean latents. Shape (B, ...), float32.

    Raises:
        InvalidRequest: If the solver draws noise and there are no generators.
    """
    registers = latents.new_zeros((latents.shape[0], REGISTERS, *latents.shape[1:]))
    registers[:, 0] = latents
    for index, evaluation in enumerate(table.evaluations):
        noise = None
        if evaluation.draws_noise:
            noise = _draw(table.scheduler, latents, generators)
        sigma = torch.full((len(latents),), evaluation.sigma, dtype=torch.float64)
        raw = estimate(registers[:, 0], sigma, evaluation.step)
        denoised = clip_denoised(raw, table.clip)
        coefficients = evaluation.tensor().to(latents.device).repeat(len(latents), 1, 1)
        registers = advance(registers, denoised, coefficients, raw=raw, noise=noise)
        if callback is not None:
            callback(index, registers[:, 0], denoised)
    return registers[:, 0].clone()


def _draw(scheduler: str, latents: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
    """Draw one noise tensor per image."""
    if generators is None:
        raise InvalidRequest(
            f"scheduler {scheduler} draws noise: generators must hold one torch.Generator "
            f"for each of the {len(latents)} images, got none",
            field="generators",
        )
    return draw_noise(latents.shape[1:], generators).to(latents.device)


def sample(
    denoiser: Denoiser | Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    *,
    scheduler: str = "euler",
    sigma_schedule: str = "karras",
    num_inference_steps: int = 20,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigmas: Sequence[float] | None = None,
    generators: Sequence[torch.Generator] | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Sample with any denoiser: the mathematics alone.

    Args:
        denoiser: Maps noisy latents (B, ...) and noise levels (B,) to the
            estimate of the clean latents, same shape.
        latents: Starting noise already scaled to the first noise level.
            Shape (B, ...), any rank, floating point; computed in float32.
        scheduler: One of the built-in schedulers. ``flow_euler`` and
            ``flow_heun`` read noise levels in [0, 1] in the flow frame.
        sigma_schedule: ``karras``, ``exponential``, ``beta`` or ``linear``.
        num_inference_steps: Solver steps, >= 1.
        sigma_min: Lowest noise level above 0.
        sigma_max: Noise level of ``latents``.
        sigmas: The noise levels themselves instead of the four arguments
            before: falling, ending in 0.
        generators: One CPU generator per image, for solvers that draw noise.
        callback: Told ``(step index, latents, denoised)`` after each network call.

    Returns:
        Clean latents. Shape (B, ...), float32.

    Raises:
        InvalidRequest: If a number is out of range, noise levels do not fall, or
            generators are missing.
        UnknownName: If the scheduler or schedule does not exist.
        ShapeError: If the denoiser answers another shape, or there is not one
            generator per image.

    Example:
        >>> import torch
        >>> spread = 0.5  # of the data, so the best denoiser is known exactly
        >>> def denoiser(x, sigma):
        ...     return x * spread**2 / (spread**2 + sigma.reshape(-1, 1) ** 2)
        >>> noise = torch.ones(1, 1) * 10.0
        >>> out = sample(denoiser, noise, scheduler="heun", sigma_max=10.0, num_inference_steps=40)
        >>> round(float(out), 2)
        0.5
    """
    if latents.ndim < 1 or not latents.is_floating_point():
        raise ShapeError(
            "latents must be a floating-point tensor of shape (B, ...), got "
            f"{latents.dtype} of shape {tuple(latents.shape)}",
            field="latents",
        )
    if generators is not None and len(generators) != len(latents):
        raise ShapeError(
            f"generators must hold one torch.Generator per image, got {len(generators)} "
            f"for {len(latents)} images",
            field="generators",
        )
    info = SCHEDULERS[scheduler].info
    levels = (
        sigma_curve(sigma_schedule, num_inference_steps, sigma_min, sigma_max)
        if sigmas is None
        else _checked_levels(sigmas, info.frame)
    )
    schedule = Schedule(
        frame=info.frame,
        timesteps=tuple(levels[:-1]),
        sigmas=tuple(levels),
        init_noise_sigma=levels[0],
        is_bare=True,
    )
    table = tabulate(scheduler, schedule)
    call: Any = denoiser if isinstance(denoiser, FunctionDenoiser) else FunctionDenoiser(denoiser)

    def estimate(state: Tensor, sigma: Tensor, step: int) -> Tensor:
        return call(state, sigma.to(state))

    return denoise(estimate, latents.float(), table, generators=generators, callback=callback)


def _checked_levels(sigmas: Sequence[float], frame: str) -> list[float]:
    """Refuse noise levels that do not fall to 0."""
    levels = [float(sigma) for sigma in sigmas]
    falls = all(a > b for a, b in pairwise(levels))
    most = 1.0 if frame == "flow" else float("inf")
    if len(levels) < 2 or not falls or levels[-1] != 0 or not levels[0] <= most:
        raise InvalidRequest(
            "sigmas must be at least two falling noise levels ending in 0"
            f"{' and starting at most at 1' if frame == 'flow' else ''}, got {levels[:6]}",
            field="sigmas",
            value=levels[:6],
        )
    return levels
