"""Rules of two stages: look at a level between two steps, then go the whole step.

Theory: with rho = log sigma as time, a step from ``here`` to ``there`` is second-order
accurate if the estimate is taken halfway, at ``sqrt(here * there)``. An ancestral step goes
down below its target and adds the noise that is missing there; a stochastic one does so in
both stages.

Dimensions: N steps counted from 0 by k.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from mezzotint.sampling.schedules import noise_schedule
from mezzotint.sampling.tables import Evaluation, evaluation, weights
from mezzotint.sampling.timesteps import Schedule

__all__ = ["ancestral", "dpm2", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_2s_sde"]


def ancestral(here: float, there: float) -> tuple[float, float]:
    """Return (sigma_down, sigma_up): where a step goes, and the noise that leads back up.

    Source: Song et al. 2020 (arXiv:2010.02502), eta = 1, in the variance-exploding frame.
    """
    up = there * math.sqrt((here**2 - there**2) / here**2)
    return math.sqrt(max(there**2 - up**2, 0.0)), up


def _between(schedule: Schedule, config: Mapping[str, Any], sigma: float) -> tuple[float, float]:
    """Return a level that no step has, and what the network is told there."""
    if schedule.is_bare:
        return sigma, sigma
    return sigma, noise_schedule(config).timestep_of(sigma, snap=0)


def _whole_step(schedule: Schedule, k: int, first: int, *, draws_noise: bool = False) -> Evaluation:
    """Euler to sigma 0: nothing lies halfway."""
    return evaluation(schedule, k, weights(d=1), first=first, draws_noise=draws_noise)


_Stages = Callable[[float, float], tuple[float, tuple[float, ...], tuple[float, ...]]]
"""Told the levels of a step; answers with the level halfway, the look there, and the step."""


def _two_stages(
    schedule: Schedule,
    config: Mapping[str, Any],
    first: int,
    stages: _Stages,
    *,
    draws_noise: bool = False,
) -> list[Evaluation]:
    """Fill a table of two calls a step, with the latents before it in register 1."""
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        if there == 0:
            result.append(_whole_step(schedule, k, first))
            continue
        middle, look, step = stages(here, there)
        between = _between(schedule, config, middle)
        result += [
            evaluation(schedule, k, look, weights(r0=1), first=first),
            evaluation(schedule, k, step, first=first, between=between, draws_noise=draws_noise),
        ]
    return result


def dpm2(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """DPM-Solver-2 in sigma. Karras et al. 2022 (arXiv:2206.00364), algorithm 2, no churn."""

    def stages(here: float, there: float) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        middle = math.sqrt(here * there)
        look = weights(r0=middle / here, d=1 - middle / here)
        return middle, look, weights(r1=1, gap=(there - here) / middle)

    return _two_stages(schedule, config, first, stages)


def dpm2_ancestral(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """DPM-Solver-2 down to sigma_down, then noise of sigma_up. As :func:`dpm2`."""

    def stages(here: float, there: float) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        down, up = ancestral(here, there)
        middle = math.sqrt(here * down)
        look = weights(r0=middle / here, d=1 - middle / here)
        return middle, look, weights(r1=1, gap=(down - here) / middle, n=up)

    return _two_stages(schedule, config, first, stages, draws_noise=True)


def dpmpp_2s_ancestral(
    schedule: Schedule, config: Mapping[str, Any], first: int
) -> list[Evaluation]:
    """DPM-Solver++(2S) to sigma_down, then noise. Lu et al. 2022 (arXiv:2211.01095), alg. 1."""

    def stages(here: float, there: float) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
        down, up = ancestral(here, there)
        middle = math.sqrt(here * down)
        look = weights(r0=middle / here, d=1 - middle / here)
        return middle, look, weights(r1=down / here, d=1 - down / here, n=up)

    return _two_stages(schedule, config, first, stages, draws_noise=True)


def dpmpp_2s_sde(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """SDE-DPM-Solver++(2S), r = 1/2, eta = 1. Lu et al. 2022 (arXiv:2211.01095), appendix B.

    The noise of the whole step continues that of the look halfway, as one Brownian path over
    sigma does: its first part is the same. Registers: 1 the latents before the step, 2 the
    noise of the first part.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        if there == 0:
            result.append(_whole_step(schedule, k, first))
            continue
        middle = math.sqrt(here * there)
        down, up = ancestral(here, middle)
        look = weights(r0=down / here, d=1 - down / here, n=up)
        result.append(
            evaluation(
                schedule, k, look, weights(r0=1), weights(n=1), first=first, draws_noise=True
            )
        )
        down, up = ancestral(here, there)
        old = math.sqrt((here - middle) / (here - there))
        new = math.sqrt((middle - there) / (here - there))
        step = weights(r1=down / here, d=1 - down / here, r2=up * old, n=up * new)
        between = _between(schedule, config, middle)
        result.append(evaluation(schedule, k, step, first=first, between=between, draws_noise=True))
    return result
