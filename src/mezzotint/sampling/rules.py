"""Rules: how each solver fills its table, from the papers.

A rule turns the noise levels of a run into evaluations: one per network call,
each with the coefficients of the update after it. Latents are in the model's
frame (:mod:`mezzotint.sampling.denoiser`); rules that papers write in the
variance-preserving frame are divided by sqrt(alpha_bar) here, which leaves the
picture the same.

Dimensions: R registers of an image, N steps counted from 0 by k.
"""

import math
from collections.abc import Mapping
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.sampling.history_rules import (
    deis,
    dpmpp_3m_sde,
    ipndm,
    lms,
    plms,
    res_multistep,
    sa_solver,
)
from mezzotint.sampling.schedules import TERMINAL_ALPHA_BAR, noise_schedule
from mezzotint.sampling.stage_rules import dpm2, dpm2_ancestral, dpmpp_2s_ancestral, dpmpp_2s_sde
from mezzotint.sampling.tables import (
    COLUMNS,
    Evaluation,
    Rule,
    evaluation,
    last_alpha,
    log_snr,
    scaled,
    weights,
)
from mezzotint.sampling.timesteps import Schedule

__all__ = ["RULES"]


def _euler(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """X' = D + (sigma' / sigma) (x - D). Karras et al. 2022, algorithm 1 without line 6."""
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        ratio = schedule.sigmas[k + 1] / schedule.sigmas[k]
        result.append(evaluation(schedule, k, weights(r0=ratio, d=1 - ratio), first=first))
    return result


def _euler_ancestral(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Euler down to sigma_down, then noise of sigma_up. Song et al. 2020 (arXiv:2010.02502)."""
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        up = math.sqrt(there**2 * (here**2 - there**2) / here**2)
        down = math.sqrt(max(there**2 - up**2, 0.0))
        row = weights(r0=down / here, d=1 - down / here, n=up)
        result.append(evaluation(schedule, k, row, first=first, draws_noise=True))
    return result


def _heun(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Euler, look there, average the slopes. Karras et al. 2022, algorithm 1.

    Registers: 1 the latents before the step, 2 the slope there.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        ratio = there / here
        euler = weights(r0=ratio, d=1 - ratio)
        if there == 0:
            result.append(evaluation(schedule, k, euler, first=first))
            continue
        half = (there - here) / 2
        mean = weights(r1=1, r2=half, gap=half / there)
        slope = weights(gap=1 / here)
        result.append(evaluation(schedule, k, euler, weights(r0=1), slope, first=first))
        if k + 1 < schedule.num_steps:
            result.append(evaluation(schedule, k, mean, first=first, at=k + 1))
        else:  # a schedule that ends above 0 has no timestep there
            result[-1] = evaluation(schedule, k, euler, first=first)
    return result


def _previous_weight(schedule: Schedule, k: int) -> float:
    """Return h / h_0: how far this step reaches, in units of the one before, in log-SNR."""
    reach = log_snr(schedule, k + 1) - log_snr(schedule, k)
    before = log_snr(schedule, k) - log_snr(schedule, k - 1)
    return 0.0 if math.isinf(before) else reach / before


def _is_first_order(schedule: Schedule, config: Mapping[str, Any], k: int, first: int) -> bool:
    """Tell whether a second-order multistep rule falls back to first order at step k."""
    few = schedule.num_steps < 15 and config.get("lower_order_final", True)
    at_end = k == schedule.num_steps - 1 and (
        schedule.sigmas[-1] == 0 or few or bool(config.get("euler_at_final"))
    )
    return k == first or at_end


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
        row = scaled(weights(r0=ratio, d=drop + weight, r1=-weight), last_alpha(schedule, k))
        result.append(evaluation(schedule, k, row, weights(d=1), first=first))
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
        row = weights(
            r0=ratio**2,
            d=drop + weight,
            r1=-weight,
            n=schedule.sigmas[k + 1] * math.sqrt(drop),
        )
        row = scaled(row, last_alpha(schedule, k))
        result.append(evaluation(schedule, k, row, weights(d=1), first=first, draws_noise=True))
    return result


def _unipc(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """UniPC of order 2, B2(h), with corrector. Zhao et al. 2023 (arXiv:2302.04867).

    Registers: 1 the corrected latents of one step ago, 2 and 3 what the network
    said one and two steps ago.
    """
    result: list[Evaluation] = []
    order = 1
    for k in range(first, schedule.num_steps):
        here = weights(r0=1)
        if k > first:
            here = _unipc_corrected(schedule, k, order)
        remaining = schedule.num_steps - k if config.get("lower_order_final", True) else 2
        order = min(2, remaining, k - first + 1)
        ratio = schedule.sigmas[k + 1] / schedule.sigmas[k]
        drop = 1 - ratio
        step = [ratio * c for c in here]
        step[COLUMNS.index("d")] += drop
        if order == 2:
            weight = 0.5 * drop * _previous_weight(schedule, k)
            step[COLUMNS.index("d")] += weight
            step[COLUMNS.index("r2")] -= weight
        last = last_alpha(schedule, k)
        result.append(
            evaluation(
                schedule,
                k,
                scaled(tuple(step), last),
                here,
                weights(d=1),
                weights(r2=1),
                first=first,
            )
        )
    return result


def _unipc_corrected(schedule: Schedule, k: int, order: int) -> tuple[float, ...]:
    """Correct the latents of step k with what the network says there."""
    ratio = schedule.sigmas[k] / schedule.sigmas[k - 1]
    reach = log_snr(schedule, k) - log_snr(schedule, k - 1)
    base = math.expm1(-reach)  # = ratio - 1 in the variance-exploding frame
    if order == 1:
        own, older, rk = 0.5, 0.0, 1.0
    else:
        rk = (log_snr(schedule, k - 2) - log_snr(schedule, k - 1)) / reach
        phi = base / -reach - 1
        b1 = phi / base
        phi = phi / -reach - 0.5
        b2 = phi * 2 / base
        older = (b1 - b2) / (1 - rk)  # the 2 x 2 system [1 1; rk 1] rho = b
        own = b1 - older
    correction = -base
    return weights(
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
        row = weights(raw_gap=slope, d=math.sqrt(there) / root, n=deviation / root)
        result.append(evaluation(schedule, k, row, first=first, draws_noise=eta > 0))
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
        row = weights(
            d=(1 - current) / (1 - here),
            r0=current * (1 - there) / (1 - here),
            n=math.sqrt(variance / there) if draws else 0.0,
        )
        result.append(evaluation(schedule, k, row, first=first, draws_noise=draws))
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
        row = weights(d=out, r0=keep, n=schedule.sigmas[k + 1] if draws else 0.0)
        result.append(evaluation(schedule, k, row, first=first, draws_noise=draws))
    return result


def _tcd(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Trajectory consistency sampling. Zheng et al. 2024 (arXiv:2402.19159), algorithm 4.

    Each step goes below its target, to timestep (1 - eta) times the target's, and adds the
    noise that is missing there; eta is 0.3 where the configuration says nothing.
    """
    eta = float(config.get("eta", 0.3))
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        is_last = k + 1 == schedule.num_steps
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        scale = 1.0
        if schedule.is_bare:
            down = (1 - eta) * there
        elif is_last:  # the paper's state at timestep 0 is the picture
            down = noise_schedule(config).exact_sigma_of(0)
            scale = math.sqrt(_alpha_bar_of(down))
        else:
            below = math.floor((1 - eta) * schedule.timesteps[k + 1])
            down = noise_schedule(config).exact_sigma_of(below)
        draws = eta > 0 and not is_last
        up = math.sqrt(max(there**2 - down**2, 0.0)) if draws else 0.0
        step = weights(d=scale, raw_gap=scale * down / here, n=up)
        result.append(evaluation(schedule, k, step, first=first, draws_noise=draws))
    return result


RULES: Mapping[str, Rule] = {
    "ddim": _ddim,
    "ddpm": _ddpm,
    "deis": deis,
    "dpm2": dpm2,
    "dpm2_ancestral": dpm2_ancestral,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_sde": _dpmpp_sde,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2s_sde": dpmpp_2s_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "dpmpp_sde": _dpmpp_sde,
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "flow_euler": _euler,
    "flow_heun": _heun,
    "heun": _heun,
    "ipndm": ipndm,
    "lcm": _lcm,
    "lms": lms,
    "plms": plms,
    "res_multistep": res_multistep,
    "sa_solver": sa_solver,
    "tcd": _tcd,
    "unipc": _unipc,
}
"""The rule of every built-in scheduler, by name."""
