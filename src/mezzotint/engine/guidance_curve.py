"""Guidance curve: a schedule resolved to one scale per step, without tensors.

Progress runs from 0 at the first (noisiest) step to 1 at the last one, so a
curve ends exactly where it says it ends, whatever the number of steps and
however often the solver calls the network within a step.
"""

import math

from mezzotint.errors import InvalidRequest
from mezzotint.request import GuidanceSchedule

__all__ = ["resolve_guidance"]


def resolve_guidance(schedule: float | GuidanceSchedule, num_steps: int) -> tuple[float, ...]:
    """Return the guidance scale of every step.

    Args:
        schedule: One scale, or a curve.
        num_steps: Steps that are really run, >= 0.

    Returns:
        ``num_steps`` scales; 1 means that the step computes no unconditional row.

    Raises:
        InvalidRequest: If a list has not one value per step.

    Example:
        >>> resolve_guidance(GuidanceSchedule(schedule="linear", start=9, end=5), 3)
        (9.0, 7.0, 5.0)
    """
    if not isinstance(schedule, GuidanceSchedule):
        return (float(schedule),) * num_steps
    if schedule.schedule == "list":
        if len(schedule.values) != num_steps:
            raise InvalidRequest(
                "guidance_scale.values must have one value per step that is run, "
                f"got {len(schedule.values)} for {num_steps} steps",
                field="guidance_scale.values",
                value=len(schedule.values),
                allowed=str(num_steps),
            )
        return schedule.values
    last = max(num_steps - 1, 1)
    return tuple(_scale(schedule, step / last) for step in range(num_steps))


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
