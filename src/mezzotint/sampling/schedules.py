"""Noise schedules a model was trained with, by their exact names.

A training schedule says how noisy each training timestep is. It is pure
arithmetic without a tensor library, so that a plan can be made and priced
before any network is loaded. Schedules follow the names in a diffusers
``scheduler_config.json``, with two that share a name told apart:
``"sigmoid_beta"`` (diffusers' ``"sigmoid"``, a sigmoid over beta, from GeoDiff)
and ``"sigmoid_alpha_bar"`` (a sigmoid over alpha_bar, arXiv:2212.11972).

Betas and cumulative products are rounded to float32 where the training code of
the field rounds them, because those are the numbers the weights have seen;
everything derived from them is float64.

Theory: training sees ``x_t = sqrt(alpha_bar_t) clean + sqrt(1 - alpha_bar_t) noise`` with
``alpha_bar_t = prod_(s <= t) (1 - beta_s)`` (Ho et al. 2020, arXiv:2006.11239, equation 4),
so timestep t has the noise level ``sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t)`` in the
frame of the denoisers. A schedule whose last alpha_bar is not 0 never shows the network
pure noise; rescaling it to zero terminal SNR mends that (Lin et al. 2023,
arXiv:2305.08891, algorithm 1). A flow has no betas: ``x_t = (1 - t) clean + t noise``.

Dimensions: T training timesteps, index 0 the cleanest.
"""

import bisect
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.schedulers import Frame

__all__ = [
    "BETA_SCHEDULES",
    "TERMINAL_ALPHA_BAR",
    "NoiseSchedule",
    "beta_values",
    "cumulate",
    "frame_of",
    "noise_schedule",
    "rescale_zero_terminal_snr",
]


# Zero terminal SNR means an infinite sigma. Solvers that keep sigmas stop at the
# field's 2**-24 (sigma 4096, diffusers); those that work on alpha_bar itself use
# TERMINAL_ALPHA_BAR, which float32 cannot tell from zero (sigma 2**24).
SIGMA_ALPHA_BAR = 2.0**-24
TERMINAL_ALPHA_BAR = 2.0**-48


def _float32(values: Sequence[float]) -> list[float]:
    """Round each number to float32."""
    return list(array("f", values))


def _linspace32(start: float, end: float, count: int) -> list[float]:
    """Return evenly spaced float32 numbers, counted from the nearer end as torch does."""
    if count == 1:
        return _float32([start])
    start, end = _float32([start, end])
    step = _float32([(end - start) / (count - 1)])[0]
    half = count // 2
    return _float32(
        [start + step * i if i < half else end - step * (count - 1 - i) for i in range(count)]
    )


def _from_alpha_bar(
    alpha_bar: Callable[[float], float], count: int, max_beta: float = 0.999
) -> list[float]:
    """Return betas whose cumulative product follows ``alpha_bar`` over [0, 1]."""
    return _float32(
        [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), max_beta) for i in range(count)]
    )


def _linear(start: float, end: float, count: int) -> list[float]:
    return _linspace32(start, end, count)


def _scaled_linear(start: float, end: float, count: int) -> list[float]:
    return _float32([root * root for root in _linspace32(start**0.5, end**0.5, count)])


def _cosine(_start: float, _end: float, count: int) -> list[float]:
    """Nichol and Dhariwal 2021, arXiv:2102.09672, equation 17."""
    return _from_alpha_bar(lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2, count)


def _exp(_start: float, _end: float, count: int) -> list[float]:
    return _from_alpha_bar(lambda t: math.exp(-12 * t), count)


def _laplace(_start: float, _end: float, count: int) -> list[float]:
    def alpha_bar(t: float) -> float:
        half_log_snr = -0.5 * math.copysign(1, 0.5 - t) * math.log(1 - 2 * abs(0.5 - t) + 1e-6)
        snr = math.exp(half_log_snr)
        return math.sqrt(snr / (1 + snr))

    return _from_alpha_bar(alpha_bar, count)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _sigmoid_beta(start: float, end: float, count: int) -> list[float]:
    squashed = _float32([_sigmoid(x) for x in _linspace32(-6, 6, count)])
    return _float32([s * (end - start) + start for s in squashed])


def _sigmoid_alpha_bar(_start: float, _end: float, count: int) -> list[float]:
    """Jabri et al. 2022, arXiv:2212.11972, with start -3, end 3 and tau 1."""
    low, high = _sigmoid(-3), _sigmoid(3)

    def alpha_bar(t: float) -> float:
        return (high - _sigmoid(6 * t - 3)) / (high - low)

    return _from_alpha_bar(alpha_bar, count)


BETA_SCHEDULES: Mapping[str, Callable[[float, float, int], list[float]]] = {
    "cosine": _cosine,
    "exp": _exp,
    "laplace": _laplace,
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "sigmoid": _sigmoid_beta,
    "sigmoid_alpha_bar": _sigmoid_alpha_bar,
    "sigmoid_beta": _sigmoid_beta,
    "squaredcos_cap_v2": _cosine,
}
"""Names a configuration may use; ``cosine`` and ``squaredcos_cap_v2`` are one."""


def beta_values(name: str, *, start: float = 1e-4, end: float = 0.02, count: int) -> list[float]:
    """Return the betas of a named schedule.

    Args:
        name: A key of ``BETA_SCHEDULES``.
        start: First beta, where the schedule has one. 0 < start < 1.
        end: Last beta, where the schedule has one. 0 < end < 1.
        count: Number of training timesteps, > 0.

    Returns:
        ``count`` float32 numbers in (0, 1).

    Raises:
        UnknownName: If there is no such schedule.

    Example:
        >>> [round(b, 4) for b in beta_values("linear", count=3)]
        [0.0001, 0.01, 0.02]
    """
    if name not in BETA_SCHEDULES:
        raise UnknownName("beta schedule", name, BETA_SCHEDULES, field="beta_schedule")
    return BETA_SCHEDULES[name](start, end, count)


def cumulate(betas: Sequence[float]) -> list[float]:
    """Return alpha_bar: the cumulative product of ``1 - beta``, each rounded to float32."""
    product, products = 1.0, list[float]()
    for alpha in _float32([1 - beta for beta in betas]):
        product *= alpha
        products.append(product)
    return _float32(products)


def rescale_zero_terminal_snr(betas: Sequence[float]) -> list[float]:
    """Move a schedule so that its last timestep is pure noise.

    Args:
        betas: The schedule to change.

    Returns:
        Betas of which the last is exactly 1.

    Source: Lin et al. 2023, arXiv:2305.08891, algorithm 1.
    """
    roots = _float32([math.sqrt(a) for a in cumulate(betas)])
    first, last = roots[0], roots[-1]
    shifted = _float32([root - last for root in roots])
    factor = _float32([first / _float32([first - last])[0]])[0]
    scaled = _float32([root * factor for root in shifted])
    bars = _float32([root * root for root in scaled])
    alphas = [bars[0], *_float32([b / a for a, b in pairwise(bars)])]
    return _float32([1 - alpha for alpha in alphas])


@dataclass(frozen=True)
class NoiseSchedule:
    """How noisy each training timestep is, and the way back.

    Args:
        frame: ``"ve"`` or ``"flow"``; see :mod:`mezzotint.sampling.denoiser`.
        num_train_timesteps: T.
        alphas_cumprod: alpha_bar of each timestep, T numbers falling from
            nearly 1; empty in the flow frame.
        sigmas: Noise level of each timestep, rising; in the flow frame (t + 1) / T.
    """

    frame: Frame
    num_train_timesteps: int
    alphas_cumprod: tuple[float, ...] = field(repr=False)
    sigmas: tuple[float, ...] = field(repr=False)
    _log_sigmas: tuple[float, ...] = field(repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "_log_sigmas", tuple(math.log(s) for s in self.sigmas))

    @property
    def terminal_snr(self) -> float:
        """Signal-to-noise ratio left at the last timestep; 0 for a flow model."""
        return self.alphas_cumprod[-1] / (1 - self.alphas_cumprod[-1]) if self.sigmas_are_ve else 0

    @property
    def sigmas_are_ve(self) -> bool:
        """Whether noise levels are those of the variance-exploding frame."""
        return self.frame == "ve"

    def sigma_of(self, timestep: float) -> float:
        """Return the noise level at a timestep, linear between whole ones."""
        if self.frame == "flow":
            return timestep / self.num_train_timesteps
        clamped = min(max(timestep, 0.0), self.num_train_timesteps - 1)
        low = min(int(clamped), self.num_train_timesteps - 2) if self.num_train_timesteps > 1 else 0
        weight = clamped - low
        if weight == 0:
            return self.sigmas[low]
        return self.sigmas[low] + weight * (self.sigmas[low + 1] - self.sigmas[low])

    def exact_sigma_of(self, timestep: int) -> float:
        """Return the noise level of a whole timestep from alpha_bar itself.

        The same as :meth:`sigma_of` but at zero terminal SNR, where it is
        practically infinite instead of 4096.
        """
        alpha_bar = max(self.alphas_cumprod[timestep], TERMINAL_ALPHA_BAR)
        return math.sqrt((1 - alpha_bar) / alpha_bar)

    def timestep_of(self, sigma: float, *, snap: float = 1e-3) -> float:
        """Return the timestep of a noise level, linear in log sigma.

        Args:
            sigma: Noise level, > 0; levels beyond the table give its ends.
            snap: Timesteps this near to a whole one are that whole one.
        """
        if self.frame == "flow":
            return sigma * self.num_train_timesteps
        log_sigma = math.log(max(sigma, 1e-10))
        low = bisect.bisect_right(self._log_sigmas, log_sigma) - 1
        low = min(max(low, 0), self.num_train_timesteps - 2)
        below, above = self._log_sigmas[low], self._log_sigmas[low + 1]
        timestep = low + min(max((log_sigma - below) / (above - below), 0.0), 1.0)
        return round(timestep) if abs(timestep - round(timestep)) < snap else timestep


def frame_of(config: Mapping[str, Any]) -> Frame:
    """Return the frame that a scheduler configuration speaks of."""
    is_flow = (
        "FlowMatch" in str(config.get("_class_name", ""))
        or config.get("prediction_type") in ("flow", "flow_prediction")
        or bool(config.get("use_flow_sigmas"))
    )
    return "flow" if is_flow else "ve"


def noise_schedule(config: Mapping[str, Any]) -> NoiseSchedule:
    """Read the training schedule out of a diffusers-like scheduler configuration.

    Args:
        config: Keys as in ``scheduler_config.json``: ``beta_schedule``,
            ``beta_start``, ``beta_end``, ``trained_betas``,
            ``num_train_timesteps``, ``rescale_betas_zero_snr``,
            ``prediction_type``, ``_class_name``. Missing ones have diffusers'
            defaults.

    Returns:
        The schedule; the same object for the same values.

    Raises:
        UnknownName: If ``beta_schedule`` is none of ``BETA_SCHEDULES``.
        InvalidRequest: If numbers are out of range.
    """
    trained = config.get("trained_betas")
    return _cached_schedule(
        frame_of(config),
        str(config.get("beta_schedule", "linear")),
        float(config.get("beta_start", 1e-4)),
        float(config.get("beta_end", 0.02)),
        int(config.get("num_train_timesteps", 1000)),
        bool(config.get("rescale_betas_zero_snr", False)),
        None if trained is None else tuple(float(b) for b in trained),
    )


@lru_cache(maxsize=32)
def _cached_schedule(  # noqa: PLR0917 - lru_cache keys are positional
    frame: Frame,
    name: str,
    start: float,
    end: float,
    count: int,
    zero_snr: bool,
    trained: tuple[float, ...] | None,
) -> NoiseSchedule:
    """Compute a schedule once for each set of values."""
    if count < 2:
        raise InvalidRequest(
            f"num_train_timesteps must be at least 2, got {count}", field="num_train_timesteps"
        )
    if frame == "flow":
        return NoiseSchedule("flow", count, (), tuple((t + 1) / count for t in range(count)))
    betas = _float32(trained) if trained else beta_values(name, start=start, end=end, count=count)
    if not all(0 < beta < 1 for beta in betas):
        raise InvalidRequest("betas must lie between 0 and 1", field="beta_schedule")
    bars = cumulate(rescale_zero_terminal_snr(betas) if zero_snr else betas)
    kept = [*bars[:-1], SIGMA_ALPHA_BAR] if zero_snr else bars
    sigmas = tuple(math.sqrt((1 - bar) / bar) for bar in kept)
    return NoiseSchedule("ve", len(betas), tuple(bars), sigmas)
