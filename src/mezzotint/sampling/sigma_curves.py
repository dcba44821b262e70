"""Curves: noise levels between two ends, by the names the field knows them by.

Plain arithmetic; no training schedule and no tensor.

Theory: a step's error grows with the curvature of the path, which is highest at low
noise. ``karras`` spaces ``sigma^(1/rho)`` evenly, rho = 7 (Karras et al. 2022,
arXiv:2206.00364, equation 5); ``exponential`` spaces log sigma evenly, its limit for
rho to infinity; ``linear`` spaces sigma; ``beta`` takes quantiles of a Beta
distribution, dense at both ends (Lee et al. 2024, arXiv:2407.12173); ``kl_optimal`` spaces
atan(sigma) evenly. ``align_your_steps`` are levels that were optimised for Stable Diffusion
1.5, ``align_your_steps_sdxl`` for SDXL, between the published ones log-linear (Sabour et al.
2024, arXiv:2404.14507); ``gits`` follow the curvature of paths (Chen et al. 2024,
arXiv:2405.11326). ``linear_quadratic`` goes down slowly and evenly at first, then ever faster
(Movie Gen, arXiv:2410.13720, section 3.4.2).

Dimensions: N levels, falling, without the final 0 unless said.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.sampling.gits import GITS

__all__ = [
    "CURVES",
    "PUBLISHED",
    "beta_sigmas",
    "exponential_sigmas",
    "karras_sigmas",
    "kl_optimal_sigmas",
    "linear_quadratic_sigmas",
    "ramp",
    "sigma_curve",
]


def karras_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0
) -> list[float]:
    """Space noise levels evenly in ``sigma ** (1 / rho)``, without the final 0.

    Source: Karras et al. 2022 (arXiv:2206.00364), equation 5.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + part * (low - high)) ** rho for part in ramp(num_steps)]


def exponential_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Space noise levels evenly in their logarithm, without the final 0."""
    low, high = math.log(sigma_min), math.log(sigma_max)
    return [math.exp(high + part * (low - high)) for part in ramp(num_steps)]


def beta_sigmas(
    num_steps: int, sigma_min: float, sigma_max: float, *, alpha: float = 0.6, beta: float = 0.6
) -> list[float]:
    """Space noise levels by quantiles of a Beta distribution, without the final 0.

    Source: Lee et al. 2024, Beta Sampling is All You Need (arXiv:2407.12173).
    """
    return [
        sigma_min + _beta_quantile(1 - part, alpha, beta) * (sigma_max - sigma_min)
        for part in ramp(num_steps)
    ]


def kl_optimal_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Space noise levels evenly in atan(sigma), without the final 0.

    Source: Sabour et al. 2024 (arXiv:2404.14507), section 3.2: optimal for Gaussian data.
    """
    low, high = math.atan(sigma_min), math.atan(sigma_max)
    return [math.tan(high + part * (low - high)) for part in ramp(num_steps)]


def linear_quadratic_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Space noise levels evenly over a fortieth of the way, then quadratically to 0.

    Half of the steps, rounded down, are even. ``sigma_min`` is not a level of it: the curve
    goes to 0.

    Source: Movie Gen (arXiv:2410.13720), section 3.4.2, with Mochi's threshold of 0.025.
    """
    even = num_steps // 2
    curved, threshold = num_steps - even, 0.025
    if not even:
        return [sigma_max] * num_steps
    slope = threshold / even
    bend = (1 - threshold - slope * curved) / curved**2
    shares = [slope * k for k in range(even)]
    shares += [threshold + slope * k + bend * k**2 for k in range(curved)]
    return [sigma_max * (1 - share) for share in shares]


PUBLISHED: dict[str, Mapping[int, tuple[float, ...]]] = {
    "align_your_steps": {10: (
        14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029,
    )},
    "align_your_steps_sdxl": {10: (
        14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029,
    )},
    "gits": GITS,
}  # fmt: skip
"""Levels by schedule and number of steps, the one that 0 takes the place of included."""


def _published_sigmas(name: str, num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Return published levels without the final 0, log-linear between the most of them for others.

    Models whose levels end within 2 % of the published ends get these as they are; for
    others they are stretched, in log sigma, to the model's ends.

    Source: Sabour et al. 2024 (arXiv:2404.14507), appendix; Chen et al. 2024 (arXiv:2405.11326).
    """
    rows = PUBLISHED[name]
    levels = rows.get(num_steps, rows[max(rows)])
    logs = [math.log(level) for level in levels]
    high, low = math.log(sigma_max), math.log(sigma_min)
    if max(abs(high - logs[0]), abs(low - logs[-1])) > 0.02:
        scale = (high - low) / (logs[0] - logs[-1])
        logs = [low + (log - logs[-1]) * scale for log in logs]
    result: list[float] = []
    for part in ramp(num_steps + 1)[:-1]:
        place = part * (len(logs) - 1)
        left = min(int(place), len(logs) - 2)
        result.append(math.exp(logs[left] + (place - left) * (logs[left + 1] - logs[left])))
    return result


def ramp(count: int) -> list[float]:
    """Return ``count`` numbers from 0 to 1 in equal steps; 0 alone for one."""
    return [k / (count - 1) for k in range(count)] if count > 1 else [0.0]


def _beta_quantile(probability: float, a: float, b: float) -> float:
    """Invert the regularised incomplete beta function by bisection."""
    if probability <= 0 or probability >= 1:
        return float(probability >= 1)
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a, b) < probability else (low, middle)
    return (low + high) / 2


def _beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function by Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta_cdf(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    result = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / (1 + numerator * d)
            c = 1 + numerator / c
            result *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * result / a


CURVES: dict[str, Callable[[int, float, float], list[float]]] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "beta": beta_sigmas,
    "kl_optimal": kl_optimal_sigmas,
    "linear_quadratic": linear_quadratic_sigmas,
    **{name: partial(_published_sigmas, name) for name in PUBLISHED},
}
"""Curves that a scheduler may put its noise levels on."""


def sigma_curve(name: str, num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    """Return N noise levels between two ends, and the final 0.

    Args:
        name: A key of :data:`CURVES`, or ``linear``.
        num_steps: N >= 1.
        sigma_min: Lowest level above 0.
        sigma_max: Highest level, > ``sigma_min`` where there is more than one step.

    Raises:
        UnknownName: If the name is none of these.
        InvalidRequest: If a number is out of range.
    """
    curves = {**CURVES, "linear": _linear_sigmas}
    if name not in curves:
        raise UnknownName("sigma_schedule", name, curves, field="sigma_schedule")
    if not 1 <= num_steps <= 100_000:
        raise InvalidRequest(
            f"num_inference_steps must be 1 to 100000, got {num_steps}", field="num_inference_steps"
        )
    if not (0 < sigma_min < sigma_max < math.inf):
        raise InvalidRequest(
            f"sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, got {sigma_min} "
            f"and {sigma_max}",
            field="sigma_min",
        )
    return [*curves[name](num_steps, sigma_min, sigma_max), 0.0]


def _linear_sigmas(num_steps: int, sigma_min: float, sigma_max: float) -> list[float]:
    return [sigma_max + part * (sigma_min - sigma_max) for part in ramp(num_steps)]
