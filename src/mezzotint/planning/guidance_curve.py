"""Guidance curve: a schedule resolved to one scale per step, without tensors.

Progress runs from 0 at the first (noisiest) step to 1 at the last one, in log-SNR
in between: a curve means the same at the same noise level, whatever the number
of steps, their spacing and how often the solver calls the network, and ends
exactly where it says it ends.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.plain import check_range
from mezzotint.request import GuidanceSchedule
from mezzotint.sampling.timesteps import (
    inference_schedule,
    noise_progress,
)
from mezzotint.schedulers import NATIVE, SchedulerInfo, native_twin
from mezzotint.types import MAX_GUIDANCE

__all__ = ["resolve_guidance", "run_progress"]


def run_progress(
    scheduler: str,
    config: Mapping[str, Any],
    num_steps: int,
    sigma_schedule: str | None = None,
    *,
    first: int = 0,
) -> tuple[float, ...]:
    """Tell how far each step of a run is on its way from noise to picture.

    Args:
        scheduler: A known scheduler; of the ones without a table of ours, the
            noise levels of the training schedule in equal steps stand in.
        config: The model's scheduler configuration.
        num_steps: Steps of the whole run.
        sigma_schedule: Name of the request field, resolved.
        first: Step that the run begins at, counted from 0.

    Returns:
        One number in [0, 1] for each step that is run.

    Raises:
        InvalidRequest: If the steps do not fit the training schedule.

    Example:
        >>> [round(p, 2) for p in run_progress("euler", {}, 5)]
        [0.0, 0.19, 0.37, 0.5, 1.0]
    """
    twin = native_twin(scheduler, {})
    info = NATIVE.get(twin or scheduler) or SchedulerInfo(equals=scheduler)
    return noise_progress(inference_schedule(info, config, num_steps, sigma_schedule), first=first)


def resolve_guidance(
    schedule: float | GuidanceSchedule | Callable[[float], float],
    num_steps: int,
    progress: Sequence[float] | None = None,
) -> tuple[float, ...]:
    """Return the guidance scale of every step.

    Args:
        schedule: One scale, a curve, or a function of progress.
        num_steps: Steps that are really run, >= 0.
        progress: What :func:`run_progress` tells of each of them; equal steps if None.

    Returns:
        ``num_steps`` scales; 1 means that the step computes no unconditional row.

    Raises:
        InvalidRequest: If a list has not one value per step, or a function fails or
            answers what is no scale.

    Example:
        >>> resolve_guidance(GuidanceSchedule(schedule="linear", start=9, end=5), 3)
        (9.0, 7.0, 5.0)
    """
    if not isinstance(schedule, GuidanceSchedule) and not callable(schedule):
        return (float(schedule),) * num_steps
    if isinstance(schedule, GuidanceSchedule) and schedule.schedule == "list":
        if len(schedule.values) != num_steps:
            raise InvalidRequest(
                "guidance_scale.values must have one value per step that is run, "
                f"got {len(schedule.values)} for {num_steps} steps",
                field="guidance_scale.values",
                value=len(schedule.values),
                allowed=str(num_steps),
            )
        return schedule.values
    if progress is None:
        progress = [step / max(num_steps - 1, 1) for step in range(num_steps)]
    if isinstance(schedule, GuidanceSchedule):
        return tuple(_scale(schedule, done) for done in progress)
    return tuple(_ask(schedule, done) for done in progress)


def _ask(function: Callable[[float], float], progress: float) -> float:
    """Ask a function for the scale at a progress in [0, 1]."""
    try:
        scale = float(function(progress))
    except Exception as error:  # the caller's own code: whatever it raises is told as theirs
        raise InvalidRequest(
            f"guidance_scale is a function that failed at progress {progress:.3g}: {error!r}",
            field="guidance_scale",
        ) from error
    check_range(f"guidance_scale({progress:.3g})", scale, 0, MAX_GUIDANCE)
    return scale


def _scale(schedule: GuidanceSchedule, progress: float) -> float:
    """Evaluate a curve at a progress in [0, 1]."""
    start = schedule.start
    end = start if schedule.end is None else schedule.end
    match schedule.schedule:
        case "interval":
            return start if schedule.from_ <= progress <= schedule.until else 1.0
        case "linear":
            share = progress
        case "cosine":
            share = (1 - math.cos(math.pi * progress)) / 2
        case "power":
            share = progress**schedule.power
        case _:
            return start
    return end if progress == 1 else start + (end - start) * share
