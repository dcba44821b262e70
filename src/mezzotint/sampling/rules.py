"""Rules: how each solver fills its table, from the papers.

A rule turns the noise levels of a run into evaluations: one per network call,
each with the coefficients of the update after it. Latents are in the model's
frame (:mod:`mezzotint.sampling.denoiser`); rules that papers write in the
variance-preserving frame are divided by sqrt(alpha_bar) here, which leaves the
picture the same.

Dimensions: R registers of an image, N steps counted from 0 by k.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest
from mezzotint.sampling.schedules import TERMINAL_ALPHA_BAR, noise_schedule
from mezzotint.sampling.timesteps import Schedule

__all__ = ["REGISTERS", "RULES", "Evaluation", "Rule"]

REGISTERS = 4
"""Registers of every image, so that any mix of solvers stacks."""

Row = Mapping[str, float]
"""One new register: coefficients by ``r0``..``r3``, ``d`` (denoised, clipped if the
model says so), ``gap`` (r0 - d), ``raw_gap`` (r0 minus denoised before clipping) and
``n`` (noise). Gaps are formed before they are divided by small noise levels."""

_COLUMNS = (*(f"r{k}" for k in range(REGISTERS)), "d", "gap", "raw_gap", "n")


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

    def tensor(self) -> Tensor:
        """Return the coefficients as float32, shape (R, R + 4)."""
        return torch.tensor(self.coefficients, dtype=torch.float64).float()


Rule = Callable[[Schedule, Mapping[str, Any], int], list[Evaluation]]
"""Fills a table: ``(noise levels, scheduler configuration, first step) -> evaluations``."""


def _row(**coefficients: float) -> tuple[float, ...]:
    return tuple(coefficients.get(name, 0.0) for name in _COLUMNS)


def _rows(*rows: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Fill up with registers that stay 0."""
    return (*rows, *(_row() for _ in range(REGISTERS - len(rows))))


def _evaluation(
    schedule: Schedule,
    k: int,
    *rows: tuple[float, ...],
    first: int,
    draws_noise: bool = False,
    at: int | None = None,
) -> Evaluation:
    """Make the evaluation of step k; ``at`` names another noise level than its own."""
    level = k if at is None else at
    return Evaluation(
        step=k - first + 1,
        sigma=schedule.sigmas[level],
        timestep=schedule.timesteps[level],
        coefficients=_rows(*rows),
        draws_noise=draws_noise,
    )


def _euler(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """X' = D + (sigma' / sigma) (x - D). Karras et al. 2022, algorithm 1 without line 6."""
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        ratio = schedule.sigmas[k + 1] / schedule.sigmas[k]
        result.append(_evaluation(schedule, k, _row(r0=ratio, d=1 - ratio), first=first))
    return result


def _euler_ancestral(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Euler down to sigma_down, then noise of sigma_up. Song et al. 2020 (arXiv:2010.02502)."""
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = math.sqrt(max(there**2 - up**2, 0.0))
        row = _row(r0=down / here, d=1 - down / here, n=up)
        result.append(_evaluation(schedule, k, row, first=first, draws_noise=True))
    return result


def _heun(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Euler, look there, average the slopes. Karras et al. 2022, algorithm 1.

    Registers: 1 the latents before the step, 2 the slope there.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        ratio = there / here
        euler = _row(r0=ratio, d=1 - ratio)
        if there == 0:
            result.append(_evaluation(schedule, k, euler, first=first))
            continue
        half = (there - here) / 2
        mean = _row(r1=1, r2=half, gap=half / there)
        slope = _row(gap=1 / here)
        result.append(_evaluation(schedule, k, euler, _row(r0=1), slope, first=first))
        if k + 1 < schedule.num_steps:
            result.append(_evaluation(schedule, k, mean, first=first, at=k + 1))
        else:  # a schedule that ends above 0 has no timestep there
            result[-1] = _evaluation(schedule, k, euler, first=first)
    return result


def _log_snr(schedule: Schedule, k: int) -> float:
    """Return lambda = log(alpha / sigma), infinite at sigma 0."""
    sigma = schedule.sigmas[k]
    alpha = 1 - sigma if schedule.frame == "flow" else 1.0
    if sigma == 0:
        return math.inf
    return math.log(alpha / sigma) if alpha > 0 else -math.inf


def _previous_weight(schedule: Schedule, k: int) -> float:
    """Return h / h_0: how far this step reaches, in units of the one before, in log-SNR."""
    reach = _log_snr(schedule, k + 1) - _log_snr(schedule, k)
    before = _log_snr(schedule, k) - _log_snr(schedule, k - 1)
    return 0.0 if math.isinf(before) else reach / before


def _is_first_order(schedule: Schedule, config: Mapping[str, Any], k: int, first: int) -> bool:
    """Tell whether a second-order multistep rule falls back to first order at step k."""
    few = schedule.num_steps < 15 and config.get("lower_order_final", True)
    at_end = k == schedule.num_steps - 1 and (
        schedule.sigmas[-1] == 0 or few or bool(config.get("euler_at_final"))
    )
    return k == first or at_end


def _last_alpha(schedule: Schedule, k: int) -> float:
    """Return sqrt(alpha_bar) after the last step, 1 before: pictures are decoded as they end."""
    if schedule.frame == "flow" or k + 1 < schedule.num_steps:
        return 1.0
    return 1 / math.sqrt(1 + schedule.sigmas[-1] ** 2)


def _scaled(row: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(factor * value for value in row)


def _dpmpp_2m(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """DPM-Solver++(2M), midpoint. Lu et al. 2022 (arXiv:2211.01095), algorithm 2.

    Register 1: what the network said one step ago.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        ratio = schedule.sigmas[k + 1] / schedule.sigmas[k]
        alpha = 1 - schedule.sigmas[k + 1] if schedule.frame == "flow" else 1.0
        drop = 1 - ratio
        if schedule.frame == "flow":
            here = 1 - schedule.sigmas[k]
            drop = alpha * (1 - ratio * here / alpha) if alpha > 0 else 0.0
        weight = 0.0
        if not _is_first_order(schedule, config, k, first):
            weight = 0.5 * drop * _previous_weight(schedule, k)
        row = _scaled(_row(r0=ratio, d=drop + weight, r1=-weight), _last_alpha(schedule, k))
        result.append(_evaluation(schedule, k, row, _row(d=1), first=first))
    return result


def _dpmpp_sde(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """SDE-DPM-Solver++(2M), midpoint. Lu et al. 2022 (arXiv:2211.01095), appendix B.

    Register 1: what the network said one step ago.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        ratio = schedule.sigmas[k + 1] / schedule.sigmas[k]
        drop = 1 - ratio**2
        weight = 0.0
        if not _is_first_order(schedule, config, k, first):
            weight = 0.5 * drop * _previous_weight(schedule, k)
        row = _row(
            r0=ratio**2,
            d=drop + weight,
            r1=-weight,
            n=schedule.sigmas[k + 1] * math.sqrt(drop),
        )
        row = _scaled(row, _last_alpha(schedule, k))
        result.append(_evaluation(schedule, k, row, _row(d=1), first=first, draws_noise=True))
    return result


def _unipc(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """UniPC of order 2, B2(h), with corrector. Zhao et al. 2023 (arXiv:2302.04867).

    Registers: 1 the corrected latents of one step ago, 2 and 3 what the network
    said one and two steps ago.
    """
    result: list[Evaluation] = []
    order = 1
    for k in range(first, schedule.num_steps):
        here = _row(r0=1)
        if k > first:
            here = _unipc_corrected(schedule, k, order)
        remaining = schedule.num_steps - k if config.get("lower_order_final", True) else 2
        order = min(2, remaining, k - first + 1)
        ratio = schedule.sigmas[k + 1] / schedule.sigmas[k]
        drop = 1 - ratio
        step = [ratio * c for c in here]
        step[_COLUMNS.index("d")] += drop
        if order == 2:
            weight = 0.5 * drop * _previous_weight(schedule, k)
            step[_COLUMNS.index("d")] += weight
            step[_COLUMNS.index("r2")] -= weight
        last = _last_alpha(schedule, k)
        result.append(
            _evaluation(
                schedule, k, _scaled(tuple(step), last), here, _row(d=1), _row(r2=1), first=first
            )
        )
    return result


def _unipc_corrected(schedule: Schedule, k: int, order: int) -> tuple[float, ...]:
    """Correct the latents of step k with what the network says there."""
    ratio = schedule.sigmas[k] / schedule.sigmas[k - 1]
    reach = _log_snr(schedule, k) - _log_snr(schedule, k - 1)
    base = math.expm1(-reach)  # = ratio - 1 in the variance-exploding frame
    if order == 1:
        own, older, rk = 0.5, 0.0, 1.0
    else:
        rk = (_log_snr(schedule, k - 2) - _log_snr(schedule, k - 1)) / reach
        phi = base / -reach - 1
        b1 = phi / base
        phi = phi / -reach - 0.5
        b2 = phi * 2 / base
        older = (b1 - b2) / (1 - rk)  # the 2 x 2 system [1 1; rk 1] rho = b
        own = b1 - older
    correction = -base
    return _row(
        r1=ratio,
        r2=correction - correction * (own + older / rk),
        r3=correction * older / rk,
        d=correction * own,
    )


def _alpha_bar_of(sigma: float) -> float:
    return 1 / (1 + sigma**2)


def _trained_alpha_bar(config: Mapping[str, Any], timestep: int) -> float:
    """Return alpha_bar of a whole timestep; below 0, of what is after the last step."""
    training = noise_schedule(config)
    if timestep < 0:
        return 1.0 if config.get("set_alpha_to_one", True) else training.alphas_cumprod[0]
    return max(training.alphas_cumprod[timestep], TERMINAL_ALPHA_BAR)


def _reached_alpha_bar(schedule: Schedule, config: Mapping[str, Any], k: int) -> float:
    """Return the alpha_bar that DDIM's step k reaches: that of ``timestep - T // N``."""
    if schedule.is_bare:
        return _alpha_bar_of(schedule.sigmas[k + 1])
    gap = noise_schedule(config).num_train_timesteps // schedule.num_steps
    return _trained_alpha_bar(config, int(schedule.timesteps[k]) - gap)


def _next_root(schedule: Schedule, k: int) -> float:
    """Return sqrt(alpha_bar) of the level that the network sees next.

    DDIM reaches ``timestep - T // N``, which is not always the next timestep of
    the schedule; the state is handed on in the next one's frame, and after the
    last step as it is.
    """
    if k + 1 == schedule.num_steps:
        return 1.0
    return math.sqrt(_alpha_bar_of(schedule.sigmas[k + 1]))


def _ddim(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """DDIM. Song et al. 2020 (arXiv:2010.02502), equation 12, with eta from the configuration.

    The direction uses what the network said before clipping, as the paper's
    code does.
    """
    eta = float(config.get("eta", 0.0))
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here = _alpha_bar_of(schedule.sigmas[k])
        there = _reached_alpha_bar(schedule, config, k)
        variance = (1 - there) / (1 - here) * (1 - here / there)
        deviation = eta * math.sqrt(max(variance, 0.0))
        root = _next_root(schedule, k)
        slope = math.sqrt(max(1 - there - deviation**2, 0.0)) / root / schedule.sigmas[k]
        row = _row(raw_gap=slope, d=math.sqrt(there) / root, n=deviation / root)
        result.append(_evaluation(schedule, k, row, first=first, draws_noise=eta > 0))
    return result


def _ddpm(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """DDPM. Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7."""
    kind = str(config.get("variance_type") or "fixed_small")
    if kind not in ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"):
        raise InvalidRequest(
            f"scheduler ddpm needs a fixed variance, this model learned its own ({kind}); "
            "use ddim or dpmpp_2m",
            field="scheduler",
        )
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        is_last = k + 1 == schedule.num_steps
        here = _alpha_bar_of(schedule.sigmas[k])
        there = 1.0 if is_last else _alpha_bar_of(schedule.sigmas[k + 1])
        current = here / there
        variance = max((1 - there) / (1 - here) * (1 - current), 1e-20)
        if kind.startswith("fixed_large"):
            variance = 1 - current
        draws = not is_last if schedule.is_bare else int(schedule.timesteps[k]) > 0
        row = _row(
            d=(1 - current) / (1 - here),
            r0=current * (1 - there) / (1 - here),
            n=math.sqrt(variance / there) if draws else 0.0,
        )
        result.append(_evaluation(schedule, k, row, first=first, draws_noise=draws))
    return result


def _lcm(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Latent consistency sampling. Luo et al. 2023 (arXiv:2310.04378), algorithm 3."""
    scaling, data = float(config.get("timestep_scaling", 10.0)), 0.5
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        skip, out = 0.0, 1.0  # a bare denoiser is its own consistency function
        if not schedule.is_bare:
            scaled = int(schedule.timesteps[k]) * scaling
            skip = data**2 / (scaled**2 + data**2)
            out = scaled / math.sqrt(scaled**2 + data**2)
        keep = skip * math.sqrt(_alpha_bar_of(schedule.sigmas[k]))  # the paper's state is smaller
        draws = k + 1 < schedule.num_steps
        # the paper's sqrt(alpha_bar) x + sqrt(1 - alpha_bar) n, in the next level's frame
        row = _row(d=out, r0=keep, n=schedule.sigmas[k + 1] if draws else 0.0)
        result.append(_evaluation(schedule, k, row, first=first, draws_noise=draws))
    return result


RULES: Mapping[str, Rule] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_sde": _dpmpp_sde,
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "flow_euler": _euler,
    "flow_heun": _heun,
    "heun": _heun,
    "lcm": _lcm,
    "unipc": _unipc,
}
"""The rule of every built-in scheduler, by name."""
