"""Inference schedules: which noise levels a run visits, and what the network is told there.

Given a model's scheduler configuration, a scheduler's name and a number of
steps, these are the noise levels and timesteps that diffusers' class of that
name visits. Plain arithmetic; the names of classes are strings.

Dimensions: N steps; there are N timesteps and N + 1 noise levels, the last one
usually 0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.sampling.schedules import NoiseSchedule, noise_schedule
from mezzotint.sampling.sigma_curves import CURVES, PUBLISHED, ramp
from mezzotint.schedulers import SIGMA_SCHEDULES, Frame, SchedulerInfo

__all__ = [
    "Schedule",
    "dynamic_mu",
    "inference_schedule",
    "noise_progress",
    "spaced_timesteps",
]

DISTILLED = ("LCMScheduler", "TCDScheduler")
"""Classes whose steps are some of those that a model was distilled on."""

SPACINGS = {"linear": "linspace", "leading": "leading", "trailing": "trailing"}


# Levels beyond these say nothing about data of unit size; the ends of a flow and of
# zero terminal SNR would otherwise be infinitely far away in log-SNR.
_CLEANEST, _NOISIEST = 1e-3, 100.0
_FLUX2_LONG = 4300  # tokens beyond which FLUX.2's shift depends on steps no more


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The noise levels of one run.

    Args:
        frame: Frame of the noise levels.
        timesteps: What the network is told at each step, N numbers.
        sigmas: Noise level before each step and after the last one, N + 1
            numbers, falling.
        init_noise_sigma: What standard noise is multiplied with to start.
        is_bare: True for noise levels without a training schedule behind them.
    """

    frame: Frame
    timesteps: tuple[float, ...]
    sigmas: tuple[float, ...]
    init_noise_sigma: float
    is_bare: bool = False

    @property
    def num_steps(self) -> int:
        """Number of solver steps, N."""
        return len(self.timesteps)


def spaced_timesteps(
    spacing: str,
    num_steps: int,
    *,
    num_train_timesteps: int = 1000,
    steps_offset: int = 0,
    rounds: bool = False,
    counts_ends: bool = False,
) -> list[float]:
    """Spread steps over the training timesteps, noisiest first.

    Args:
        spacing: ``"linspace"``, ``"leading"`` or ``"trailing"``.
        num_steps: N >= 1.
        num_train_timesteps: T.
        steps_offset: Added to leading timesteps.
        rounds: Round linspace timesteps to whole numbers.
        counts_ends: Space N + 1 timesteps and leave out the cleanest one.

    Source: Lin et al. 2023 (arXiv:2305.08891), table 2; ``counts_ends`` as in
    the multistep solvers of diffusers.
    """
    total, count = num_train_timesteps, num_steps + counts_ends
    if spacing == "linspace":
        gap = (total - 1) / (count - 1) if count > 1 else 0.0
        points = [gap * k for k in range(count)]
        points = [float(round(p)) for p in points] if rounds else points
    elif spacing == "leading":
        points = [float(k * (total // count) + steps_offset) for k in range(count)]
    elif spacing == "trailing":
        points = [float(round(total - k * (total / num_steps)) - 1) for k in range(num_steps)]
        return points
    else:
        raise UnknownName("timestep_spacing", spacing, ("leading", "linspace", "trailing"))
    points.reverse()
    return points[:-1] if counts_ends else points


_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}


def inference_schedule(
    info: SchedulerInfo,
    config: Mapping[str, Any],
    num_steps: int,
    sigma_schedule: str | None = None,
    *,
    sequence_length: int = 0,
) -> Schedule:
    """Return the noise levels and timesteps of a run.

    Args:
        info: Which scheduler it is for.
        config: The model's scheduler configuration.
        num_steps: Steps asked for, N >= 1.
        sigma_schedule: One of ``SIGMA_SCHEDULES``, or None for what the
            configuration says.
        sequence_length: Tokens of the picture, for flow models whose shift
            depends on it.

    Raises:
        UnknownName: If the sigma schedule does not exist.
        InvalidRequest: If the steps do not fit the training schedule.
    """
    if sigma_schedule is not None and sigma_schedule not in SIGMA_SCHEDULES:
        raise UnknownName("sigma_schedule", sigma_schedule, SIGMA_SCHEDULES, field="sigma_schedule")
    training = noise_schedule(config)
    if not 1 <= num_steps <= training.num_train_timesteps:
        raise InvalidRequest(
            f"num_inference_steps must be 1 to {training.num_train_timesteps} for this model, "
            f"got {num_steps}",
            field="num_inference_steps",
            value=num_steps,
            allowed=f"1 to {training.num_train_timesteps}",
        )
    if sigma_schedule is None:
        sigma_schedule = next((c for flag, c in _FLAGS.items() if config.get(flag)), None)
    if training.frame == "flow":
        return _flow_schedule(config, training, num_steps, sigma_schedule, sequence_length)
    return _ve_schedule(info, config, training, num_steps, sigma_schedule)


def _ve_schedule(
    info: SchedulerInfo,
    config: Mapping[str, Any],
    training: NoiseSchedule,
    num_steps: int,
    sigma_schedule: str | None,
) -> Schedule:
    if info.equals in DISTILLED:
        return _distilled_schedule(info, config, training, num_steps)
    spacing = SPACINGS.get(sigma_schedule or "") or str(
        config.get("timestep_spacing", info.spacing)
    )
    timesteps = spaced_timesteps(
        spacing,
        num_steps,
        num_train_timesteps=training.num_train_timesteps,
        steps_offset=int(config.get("steps_offset", 0)),
        rounds=info.rounds,
        counts_ends=info.counts_ends,
    )
    timesteps = [min(t, training.num_train_timesteps - 1.0) for t in timesteps]
    sigmas = [
        training.exact_sigma_of(int(t)) if info.uses_alpha_bar else training.sigma_of(t)
        for t in timesteps
    ]
    if sigma_schedule in CURVES and not info.uses_alpha_bar:
        spans = info.from_spaced and sigma_schedule not in PUBLISHED
        ends = (sigmas[-1], sigmas[0]) if spans else _ends(training)
        sigmas = CURVES[sigma_schedule](num_steps, *ends)
        timesteps = [training.timestep_of(sigma, snap=0) for sigma in sigmas]
        if info.rounds_karras and sigma_schedule == "karras":
            timesteps = [float(round(t)) for t in timesteps]
        if info.rounds:
            whole = sigma_schedule == "karras" and (
                config.get("beta_schedule") != "squaredcos_cap_v2"
            )
            timesteps = [float(round(t) if whole else int(t + 1e-3)) for t in timesteps]
    stays = info.twin.may_end_above_zero and config.get("final_sigmas_type") == "sigma_min"
    last = training.sigmas[0] if stays else 0.0
    is_plain = spacing in ("linspace", "trailing") and info.starts_at_sigma
    start = sigmas[0] if is_plain else math.sqrt(sigmas[0] ** 2 + 1)
    return Schedule(
        frame="ve", timesteps=tuple(timesteps), sigmas=(*sigmas, last), init_noise_sigma=start
    )


def _ends(training: NoiseSchedule) -> tuple[float, float]:
    return training.sigmas[0], training.sigmas[-1]


def _distilled_schedule(
    info: SchedulerInfo, config: Mapping[str, Any], training: NoiseSchedule, num_steps: int
) -> Schedule:
    """Take N of the timesteps that a consistency model was distilled on."""
    original = int(config.get("original_inference_steps", 50))
    if num_steps > original:
        raise InvalidRequest(
            f"num_inference_steps must be 1 to {original} for {info.equals.lower()}, "
            f"got {num_steps}",
            field="num_inference_steps",
            value=num_steps,
            allowed=f"1 to {original}",
        )
    gap = training.num_train_timesteps // original
    known = [(k + 1) * gap - 1 for k in range(original)][::-1]
    chosen = [known[int(k * original / num_steps)] for k in range(num_steps)]
    sigmas = [training.exact_sigma_of(t) for t in chosen]
    return Schedule(
        frame="ve",
        timesteps=tuple(float(t) for t in chosen),
        sigmas=(*sigmas, 0.0),
        init_noise_sigma=math.sqrt(sigmas[0] ** 2 + 1),
    )


def _flow_schedule(
    config: Mapping[str, Any],
    training: NoiseSchedule,
    num_steps: int,
    sigma_schedule: str | None,
    sequence_length: int,
) -> Schedule:
    """Space a flow model's noise levels, then shift them towards noise.

    Source: Esser et al. 2024 (arXiv:2403.03206), section 5.3.2, for the shift.
    """
    total = training.num_train_timesteps
    shift = float(config.get("shift", config.get("flow_shift", 1.0)))
    dynamic = bool(config.get("use_dynamic_shifting"))
    mu = dynamic_mu(config, sequence_length, num_steps) if dynamic else 0.0

    def shifted(sigma: float) -> float:
        factor = math.exp(mu) if dynamic else shift
        if dynamic and config.get("time_shift_type", "exponential") == "linear":
            factor = mu
        return factor * sigma / (1 + (factor - 1) * sigma)

    if config.get("spaced_per_step", dynamic):  # FLUX's pipeline; SD3's goes down to 1 / total
        low = 1 / num_steps
    else:
        low = 1 / total if dynamic else shifted(1 / total)
    said = config.get("sample_sigmas") or ()  # Qwen-Image 2.1's pipeline may bring its own
    spaced = said if len(said) == num_steps else [1 + p * (low - 1) for p in ramp(num_steps)]
    sigmas = [shifted(level) for level in spaced]
    if (terminal := config.get("shift_terminal")) and sigmas[-1] < 1:  # a lone step ends at 0
        stretch = (1 - sigmas[-1]) / (1 - float(terminal))
        sigmas = [1 - (1 - sigma) / stretch for sigma in sigmas]
    if sigma_schedule in PUBLISHED:
        raise InvalidRequest(
            f"sigma_schedule {sigma_schedule} was published for diffusion models, this is a "
            "flow-matching model",
            field="sigma_schedule",
            value=sigma_schedule,
        )
    if sigma_schedule in CURVES:
        sigmas = CURVES[sigma_schedule](num_steps, sigmas[-1], sigmas[0])
    return Schedule(
        frame="flow",
        timesteps=tuple(sigma * total for sigma in sigmas),
        sigmas=(*sigmas, 0.0),
        init_noise_sigma=1.0,
    )


def dynamic_mu(config: Mapping[str, Any], sequence_length: int, num_steps: int) -> float:
    """Return the shift of a picture, on the line that the model was tuned on.

    Args:
        config: The model's scheduler configuration; with ``shift_rule`` "flux2" it is the
            fit over tokens and steps of FLUX.2's pipelines (diffusers 0.42,
            ``compute_empirical_mu``), else a line over tokens.
        sequence_length: Tokens of the picture.
        num_steps: Steps of the run.
    """
    if config.get("shift_rule") == "flux2":
        many = 0.00016927 * sequence_length + 0.45666666  # at 200 steps
        few = 8.73809524e-05 * sequence_length + 1.89833333  # at 10 steps
        if sequence_length > _FLUX2_LONG:
            return many
        slope = (many - few) / 190
        return slope * num_steps + (many - 200 * slope)
    base, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = float(config.get("base_shift", 0.5)), float(config.get("max_shift", 1.15))
    slope = (high - low) / (most - base)
    return slope * sequence_length + (low - slope * base)


def noise_progress(schedule: Schedule, *, first: int = 0) -> tuple[float, ...]:
    """Tell how far each step of a run is on its way, in log-SNR.

    A curve over this progress means the same at the same noise level, whatever
    the number of steps, their spacing and how often a solver calls the network.

    Args:
        schedule: The noise levels of the whole run.
        first: Step that the run begins at, counted from 0.

    Returns:
        One number for each step that is run: exactly 0 at the first, exactly 1 at
        the last, rising between; 0 for a single step.

    Example:
        >>> levels = Schedule(
        ...     frame="ve", timesteps=(0,) * 3, sigmas=(10, 1, 0.1, 0), init_noise_sigma=10
        ... )
        >>> noise_progress(levels)
        (0.0, 0.5, 1.0)
    """
    levels = schedule.sigmas[first : schedule.num_steps]
    if schedule.frame == "flow":  # noise over signal, which is sigma in the other frame
        levels = tuple(s / (1 - s) if s < 1 else math.inf for s in levels)
    logs = [math.log(min(max(level, _CLEANEST), _NOISIEST)) for level in levels]
    if not logs or logs[0] <= logs[-1]:
        last = max(len(logs) - 1, 1)
        return tuple(k / last for k in range(len(logs)))
    way = [(logs[0] - log) / (logs[0] - logs[-1]) for log in logs]
    return (0.0, *way[1:-1], 1.0)
