"""Rules with history: a step uses what the network said at the levels before.

Theory: along ``dx / dsigma = d``, with d = (x - denoised) / sigma, the step from sigma_k is
the integral of d. Each rule puts a polynomial through the last values (of d in sigma, of d in
log sigma, or of denoised in log sigma) and integrates that. The first steps have less history
and a lower order; the step to sigma 0 takes the estimate itself.

Dimensions: N steps counted from 0 by k.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mezzotint.sampling.schedules import noise_schedule
from mezzotint.sampling.tables import Evaluation, evaluation, weights
from mezzotint.sampling.timesteps import Schedule

__all__ = ["deis", "dpmpp_3m_sde", "ipndm", "lms", "plms", "res_multistep", "sa_solver"]

# Gauss-Legendre points and weights on [-1, 1]: exact for polynomials up to degree 3
_GAUSS = ((-1 / math.sqrt(3), 1.0), (1 / math.sqrt(3), 1.0))


def _lagrange(nodes: Sequence[float], j: int, x: float) -> float:
    """Return the polynomial that is 1 at node j and 0 at the others, at x."""
    product = 1.0
    for i, node in enumerate(nodes):
        if i != j:
            product *= (x - node) / (nodes[j] - node)
    return product


def _integrals(nodes: Sequence[float], low: float, high: float) -> list[float]:
    """Integrate each Lagrange polynomial through at most four nodes from low to high."""
    half, centre = (high - low) / 2, (high + low) / 2
    return [
        half * sum(w * _lagrange(nodes, j, centre + half * p) for p, w in _GAUSS)
        for j in range(len(nodes))
    ]


def _slopes(
    schedule: Schedule, first: int, coefficients: Callable[[int, int], Sequence[float] | None]
) -> list[Evaluation]:
    """Fill a table whose history are slopes d.

    Registers 1 to 3: the slopes one, two and three steps ago.

    Args:
        schedule: The noise levels.
        first: Step that the run begins at.
        coefficients: Told the step and how many slopes are known (1 to 4); answers with the
            coefficient of each, the latest first, or None for the estimate itself.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here = schedule.sigmas[k]
        known = min(k - first + 1, 4)
        factors = coefficients(k, known)
        if factors is None:
            step = weights(d=1)
        else:
            older = {f"r{j}": factor for j, factor in enumerate(factors) if j > 0}
            step = weights(r0=1, gap=factors[0] / here, **older)
        slope = weights(gap=1 / here)
        result.append(
            evaluation(schedule, k, step, slope, weights(r1=1), weights(r2=1), first=first)
        )
    return result


def lms(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Linear multistep of order 4, with the spacing of the levels. Adams-Bashforth.

    Source: Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section III.5.
    """

    def coefficients(k: int, known: int) -> list[float]:
        nodes = [schedule.sigmas[k - j] for j in range(known)]
        return _integrals(nodes, schedule.sigmas[k], schedule.sigmas[k + 1])

    return _slopes(schedule, first, coefficients)


_ADAMS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth on equal steps, by order."""


def ipndm(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Improved pseudo linear multistep, order 4. Zhang and Chen 2022 (arXiv:2204.13902).

    The coefficients are those of equal steps whatever the levels are.
    """

    def coefficients(k: int, known: int) -> list[float] | None:
        if schedule.sigmas[k + 1] == 0:
            return None
        reach = schedule.sigmas[k + 1] - schedule.sigmas[k]
        return [reach * factor for factor in _ADAMS[known - 1]]

    return _slopes(schedule, first, coefficients)


def plms(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """PNDM that begins with a step made twice. Liu et al. 2022 (arXiv:2202.09778), equations 9, 12.

    The second call lies where the first one led to; the mean of both answers leads there again.
    From then on the last four answers are weighed as on equal steps. An answer is the noise, or
    the velocity where the model predicts that. A step goes from the level of its call one
    stride of training timesteps down, wherever the next call lies: the latents are taken for
    latents of that level, as the class of diffusers does with all spacings but ``leading``.
    A start picture leaves out the first calls, and what is left begins in the same way.

    Registers: 1 to 3 the answers one, two and three steps ago; after the first call, 2 holds
    the latents before it.
    """
    steps = range(1, schedule.num_steps)
    levels = ([0, 1, *steps] if steps else [0])[first:]
    predicts_velocity = config.get("prediction_type") == "v_prediction"
    result: list[Evaluation] = []
    for count, k in enumerate(levels):
        here = schedule.sigmas[k]
        start, end = _stride(schedule, config, k, is_repeated=count == 1)
        is_last = count + 1 == len(levels)
        after = 0.0 if is_last else schedule.sigmas[levels[count + 1]]
        before = schedule.sigmas[levels[0]] if count == 1 else here
        frame = _alpha(end) / _alpha(after)
        reach = (end - start) * frame
        keep = _alpha(before) / _alpha(start) * frame
        gap, own = 1 / here, 0.0
        if predicts_velocity:
            keep += reach * _alpha(start) * start * _alpha(before)
            reach *= _alpha(start)
            gap, own = _alpha(here) / here, -_alpha(here) * here
        latest, *older = (1 / 2, 1 / 2) if count == 1 else _ADAMS[max(min(count, 4), 1) - 1]
        row = {f"r{j}": reach * factor for j, factor in enumerate(older, start=1)}
        row |= {"r2" if count == 1 else "r0": keep, "gap": reach * latest * gap}
        row["d"] = reach * latest * own
        answer = weights(gap=gap, d=own)
        kept = {0: (answer, weights(r0=1)), 1: (weights(r1=1),), 2: (answer, weights(r1=1))}
        history = kept.get(count, (answer, weights(r1=1), weights(r2=1)))
        made = evaluation(schedule, k, weights(**row), *history, first=first)
        result.append(replace(made, step=max(count, 1)))
    return result


def _alpha(sigma: float) -> float:
    """Return sqrt(alpha_bar) at a noise level."""
    return 1 / math.sqrt(1 + sigma**2)


def _stride(
    schedule: Schedule, config: Mapping[str, Any], k: int, *, is_repeated: bool
) -> tuple[float, float]:
    """Return the noise levels between which a step of PNDM goes."""
    if schedule.is_bare:
        start = k - is_repeated
        return schedule.sigmas[start], schedule.sigmas[start + 1]
    training = noise_schedule(config)
    stride = training.num_train_timesteps // schedule.num_steps
    at = int(schedule.timesteps[k]) + stride * is_repeated
    start = training.exact_sigma_of(min(at, training.num_train_timesteps - 1))
    if at >= stride:
        return start, training.exact_sigma_of(at - stride)
    return start, 0.0 if config.get("set_alpha_to_one") else training.exact_sigma_of(0)


def deis(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Exponential integrator on log rho. Zhang and Chen 2022 (arXiv:2204.13902), table 2.

    ``solver_order`` of the configuration, 1 to 3, is 2 where it is missing; the last steps of
    short runs are of lower order (``lower_order_final``).
    """
    wanted = min(max(int(config.get("solver_order", 2)), 1), 3)
    falls = bool(config.get("lower_order_final", True)) and schedule.num_steps < 15

    def coefficients(k: int, known: int) -> list[float] | None:
        if schedule.sigmas[k + 1] == 0:
            return None
        order = min(wanted, known)
        if falls:
            order = min(order, schedule.num_steps - k)
        logs = [math.log(schedule.sigmas[k - j]) for j in range(order)]
        return _log_integrals(logs, schedule.sigmas[k], schedule.sigmas[k + 1])

    return _slopes(schedule, first, coefficients)


def _log_integrals(nodes: Sequence[float], low: float, high: float) -> list[float]:
    """Integrate each Lagrange polynomial in log rho over rho, through at most three nodes."""
    moments = [_log_moment(power, high) - _log_moment(power, low) for power in range(3)]
    result: list[float] = []
    for j, node in enumerate(nodes):
        others = [other for i, other in enumerate(nodes) if i != j]
        scale = math.prod(node - other for other in others)
        falling = [1.0]  # coefficients of the product of (log rho - other), highest power first
        for other in others:
            falling = [a - other * b for a, b in zip([*falling, 0], [0, *falling], strict=True)]
        result.append(sum(c * m for c, m in zip(reversed(falling), moments, strict=False)) / scale)
    return result


def _log_moment(power: int, rho: float) -> float:
    """Return the antiderivative of ``log(rho) ** power``."""
    log = math.log(rho)
    return rho * (1.0, log - 1, log**2 - 2 * log + 2)[power]


def res_multistep(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """Refined exponential solver, two steps of denoised. Zhang et al. 2023 (arXiv:2308.02157).

    Register 1: what the network said one step ago.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        ratio = there / here
        fresh, old = 1 - ratio, 0.0
        if k > first and there > 0:
            reach = math.log(here / there)
            before = math.log(schedule.sigmas[k - 1] / here)
            # the straight line through both estimates, integrated against e^-(reach - t)
            slope = (reach - fresh) / before
            fresh, old = fresh + slope, -slope
        step = weights(r0=ratio, d=fresh, r1=old)
        result.append(evaluation(schedule, k, step, weights(d=1), first=first))
    return result


def dpmpp_3m_sde(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """SDE-DPM-Solver++(3M), eta = 1. Lu et al. 2022 (arXiv:2211.01095), extended to order 3.

    Registers 1 and 2: what the network said one and two steps ago.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
        draws = there > 0
        if draws:
            reach = math.log(here / there)
            fresh, old, oldest = _third_order(schedule, k, first, reach)
            keep = (there / here) ** 2
            step = weights(
                r0=keep,
                d=1 - keep + fresh,
                r1=old,
                r2=oldest,
                n=there * math.sqrt(-math.expm1(-2 * reach)),
            )
        else:
            step = weights(d=1)
        result.append(
            evaluation(
                schedule, k, step, weights(d=1), weights(r1=1), first=first, draws_noise=draws
            )
        )
    return result


def _third_order(
    schedule: Schedule, k: int, first: int, reach: float
) -> tuple[float, float, float]:
    """Return what history adds to the coefficients of the last three estimates."""
    if k == first:
        return 0.0, 0.0, 0.0
    span = 2 * reach
    phi2 = math.expm1(-span) / span + 1
    r0 = math.log(schedule.sigmas[k - 1] / schedule.sigmas[k]) / reach
    if k == first + 1:
        return phi2 / r0, -phi2 / r0, 0.0
    r1 = math.log(schedule.sigmas[k - 2] / schedule.sigmas[k - 1]) / reach
    phi3 = phi2 / span - 0.5
    # differences of the estimates: near = (d - r1) / r0, far = (r1 - r2) / r1
    near = phi2 * (1 + r0 / (r0 + r1)) - phi3 / (r0 + r1)
    far = -phi2 * r0 / (r0 + r1) + phi3 / (r0 + r1)
    return near / r0, -near / r0 + far / r1, -far / r1


def sa_solver(schedule: Schedule, config: Mapping[str, Any], first: int) -> list[Evaluation]:
    """SA-Solver, predictor and corrector of order 2. Xue et al. 2023 (arXiv:2309.05019).

    Stochastic (tau = 1) between timesteps 200 and 800, deterministic outside; a run without
    timesteps is stochastic in the middle three fifths of its steps. Registers: 1 the corrected
    latents of one step ago, 2 the noise drawn there, 3 what the network said there.
    """
    result: list[Evaluation] = []
    for k in range(first, schedule.num_steps):
        corrected = weights(r0=1)
        if k > first:
            keep, total, noise, reach, power = _stochastic_step(schedule, k - 1)
            fresh = power * reach / 2
            corrected = weights(r1=keep, d=fresh, r3=total - fresh, r2=noise)
        keep, total, noise, reach, power = _stochastic_step(schedule, k)
        old = 0.0
        if k > first and math.isfinite(reach) and _keeps_order(schedule, config, k):
            before = math.log(schedule.sigmas[k - 1] / schedule.sigmas[k])
            old = -power * reach**2 / 2 / before
        step = [
            keep * c + a
            for c, a in zip(corrected, weights(d=total - old, r3=old, n=noise), strict=True)
        ]
        result.append(
            evaluation(
                schedule,
                k,
                tuple(step),
                corrected,
                weights(n=1),
                weights(d=1),
                first=first,
                draws_noise=True,
            )
        )
    return result


def _keeps_order(schedule: Schedule, config: Mapping[str, Any], k: int) -> bool:
    """Tell whether the predictor of a step is of order 2."""
    return k + 1 < schedule.num_steps or not config.get("lower_order_final", True)


def _stochastic_step(schedule: Schedule, k: int) -> tuple[float, float, float, float, float]:
    """Return the weights of latents, estimates and noise of a step, its log-SNR and 1 + tau^2."""
    here, there = schedule.sigmas[k], schedule.sigmas[k + 1]
    at = k / schedule.num_steps * 1000 if schedule.is_bare else schedule.timesteps[k]
    tau = 1.0 if 200 <= at <= 800 else 0.0
    power = 1 + tau**2
    reach = math.log(here / there) if there > 0 else math.inf
    fade = math.exp(-(tau**2) * reach) if tau else 1.0
    total = 1 - (there / here) ** power
    noise = there * math.sqrt(1 - math.exp(-2 * tau**2 * reach)) if tau and there > 0 else 0.0
    return fade * there / here, total, noise, reach, power
