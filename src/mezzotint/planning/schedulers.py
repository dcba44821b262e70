"""Schedulers of a plan: which fit a model, and how often they call its network."""

from collections.abc import Mapping
from typing import Any

from mezzotint.errors import InvalidRequest, UnknownName
from mezzotint.schedulers import (
    DIFFUSERS,
    NATIVE,
    PNDM_LEAST_STEPS,
    SIGMA_SCHEDULES,
    Calls,
    diffusers_names,
)

__all__ = [
    "calls_after",
    "check_scheduler",
    "evaluation_steps",
    "family_schedule",
    "fitting_schedulers",
    "scheduler_names",
    "scheduler_notes",
]

_SPACINGS = ("leading", "linear", "trailing")
"""Sigma schedules that space timesteps."""


def scheduler_names() -> tuple[str, ...]:
    """Return every name that the request field ``scheduler`` may hold, sorted."""
    return tuple(sorted((*NATIVE.names(), *DIFFUSERS)))


def check_scheduler(scheduler: str, sigma_schedule: str | None, *, prediction_type: str) -> None:
    """Refuse a scheduler that nobody knows or that lives in another frame than the model.

    Args:
        scheduler: Name of the request field, resolved.
        sigma_schedule: Name of the request field, resolved; None is the scheduler's own.
        prediction_type: ``ModelSpec.prediction_type``; "flow" models need flow schedulers.

    Raises:
        UnknownName: If a name is in no list.
        InvalidRequest: If a flow model is asked for a diffusion scheduler or the reverse.
        WorkFailed: If a plug-in's scheduler cannot be loaded.
    """
    if NATIVE.get(scheduler) is None and scheduler not in DIFFUSERS:
        raise UnknownName("scheduler", scheduler, scheduler_names(), field="scheduler")
    if sigma_schedule is not None and sigma_schedule not in SIGMA_SCHEDULES:
        raise UnknownName("sigma_schedule", sigma_schedule, SIGMA_SCHEDULES, field="sigma_schedule")
    fitting = fitting_schedulers(prediction_type)
    if scheduler not in fitting:
        kind = "a flow-matching" if prediction_type == "flow" else "a diffusion"
        raise InvalidRequest(
            f"scheduler must fit {kind} model, got {scheduler!r}; fitting: {', '.join(fitting)}",
            field="scheduler",
            value=scheduler,
            allowed=", ".join(fitting),
        )


def scheduler_notes(
    scheduler: str, sigma_schedule: str | None, num_steps: int, config: Mapping[str, Any]
) -> list[str]:
    """Return what a scheduler does otherwise than it was asked, one sentence each.

    Args:
        scheduler: A known scheduler.
        sigma_schedule: What was asked for.
        num_steps: Steps of the whole schedule.
        config: The model's diffusers scheduler configuration.
    """
    notes: list[str] = []
    info = NATIVE.get(scheduler)
    if info is not None and info.uses_alpha_bar and sigma_schedule not in (None, *_SPACINGS):
        notes.append(
            f"sigma_schedule {sigma_schedule} has no effect on {scheduler}: it steps on the "
            f"training timesteps, which may be {', '.join(_SPACINGS)}"
        )
    starts = _calls(scheduler) == "pndm" and not config.get("skip_prk_steps", False)
    if starts and num_steps < PNDM_LEAST_STEPS:
        notes.append(
            f"scheduler {scheduler} begins without its Runge-Kutta steps, as plms does: they "
            f"need at least {PNDM_LEAST_STEPS} steps, got {num_steps}"
        )
    return notes


def family_schedule(sigma_schedule: str | None, family: str) -> str | None:
    """Return the sigma schedule of that name that was made for a family.

    Align Your Steps was published for Stable Diffusion 1.5 and for SDXL; the plain name
    means the one that fits.
    """
    if sigma_schedule == "align_your_steps" and family == "sdxl":
        return "align_your_steps_sdxl"
    return sigma_schedule


def fitting_schedulers(prediction_type: str) -> tuple[str, ...]:
    """Return the names that fit models of a prediction type, sorted."""
    frame = "flow" if prediction_type == "flow" else "ve"
    native = (name for name in NATIVE.names() if NATIVE[name].frame == frame)
    return tuple(sorted((*native, *diffusers_names(frame))))


def evaluation_steps(
    scheduler: str, num_steps: int, config: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Tell for each network call which user step it belongs to.

    Args:
        scheduler: A known scheduler.
        num_steps: Steps asked for, >= 1.
        config: The model's diffusers scheduler configuration (PNDM asks it; with
            fewer steps than its Runge-Kutta start needs it begins without).

    Returns:
        One step number, from 1, for each network call, in order.

    Source: the length of ``scheduler.timesteps`` in diffusers 0.42.

    Example:
        >>> evaluation_steps("heun", 3)
        (1, 1, 2, 2, 3)
    """
    steps = range(1, num_steps + 1)
    match _calls(scheduler):
        case "two":
            return tuple(step for step in steps for _ in range(2))[:-1]
        case "plms":
            return _pndm_steps(num_steps, skip_prk=True)
        case "pndm":
            skips = num_steps < PNDM_LEAST_STEPS
            skips = skips or bool((config or {}).get("skip_prk_steps", False))
            return _pndm_steps(num_steps, skip_prk=skips)
        case "one":
            return tuple(steps)


def calls_after(
    scheduler: str, num_steps: int, skipped: int, config: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Tell which step each network call belongs to when the first steps are left out.

    Args:
        scheduler: A known scheduler.
        num_steps: Steps of the whole schedule.
        skipped: Steps that a start picture leaves out.
        config: As in :func:`evaluation_steps`.

    Returns:
        One step number for each call that is left, from 1. ``plms`` leaves out as many calls,
        as its class does in image to image, and makes the step that it begins at twice.
    """
    steps = evaluation_steps(scheduler, num_steps, config)
    if _calls(scheduler) == "plms":
        return tuple(max(step - skipped, 1) for step in steps[skipped:])
    return tuple(step - skipped for step in steps if step > skipped)


def _calls(scheduler: str) -> Calls:
    """Return the calls of a step; one for a name that nobody knows, which is refused anyway."""
    found = NATIVE.get(scheduler) or DIFFUSERS.get(scheduler)
    return "one" if found is None else found.calls


def _pndm_steps(num_steps: int, *, skip_prk: bool) -> tuple[int, ...]:
    """PNDM: 12 Runge-Kutta calls for the first three steps, or one step called twice."""
    if skip_prk:
        return (1, *range(1, num_steps + 1)) if num_steps > 1 else (1,)
    start = tuple(step for step in range(1, min(num_steps, 3) + 1) for _ in range(4))
    return start + tuple(range(4, num_steps + 1))
