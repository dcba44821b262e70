"""Schedulers: the names a plan may hold and what each costs, without a tensor.

The planner must know every scheduler that may be asked for and how often it
calls the network, long before torch is imported. The mathematics behind the
names is in ``sampling.solvers`` (ours) and ``models.solvers`` (diffusers'); a
test holds this page and both of them together.
"""

from collections.abc import Mapping
from typing import Any

from mezzotint.errors import InvalidRequest, UnknownName

__all__ = [
    "DIFFUSERS_SCHEDULERS",
    "FLOW_SCHEDULERS",
    "NATIVE_SCHEDULERS",
    "SIGMA_SCHEDULES",
    "check_scheduler",
    "evaluation_steps",
    "fitting_schedulers",
    "scheduler_names",
]

NATIVE_SCHEDULERS: tuple[str, ...] = (
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_sde",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "heun",
    "lcm",
    "unipc",
)
"""Schedulers with tables of coefficients; images that use them share one update."""

FLOW_SCHEDULERS = frozenset({"flow_euler", "flow_heun"})

_DIFFUSION_ONLY = (
    "CogVideoXDDIMScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "TCDScheduler",
)
_FLOW_ONLY = (
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
)
_EITHER = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)

DIFFUSERS_SCHEDULERS: tuple[str, ...] = tuple(sorted((*_DIFFUSION_ONLY, *_FLOW_ONLY, *_EITHER)))
"""Class names that ``models.solvers`` can step image by image."""

SIGMA_SCHEDULES: tuple[str, ...] = (
    "beta",
    "exponential",
    "karras",
    "leading",
    "linear",
    "trailing",
)

_TWO_CALLS_A_STEP = frozenset(
    {
        "flow_heun",
        "heun",
        "FlowMatchHeunDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    }
)


def scheduler_names() -> tuple[str, ...]:
    """Return every name that the request field ``scheduler`` may hold, sorted."""
    return tuple(sorted(NATIVE_SCHEDULERS + DIFFUSERS_SCHEDULERS))


def check_scheduler(scheduler: str, sigma_schedule: str | None, *, prediction_type: str) -> None:
    """Refuse a scheduler that nobody knows or that lives in another frame than the model.

    Args:
        scheduler: Name of the request field, resolved.
        sigma_schedule: Name of the request field, resolved; None is the scheduler's own.
        prediction_type: ``ModelSpec.prediction_type``; "flow" models need flow schedulers.

    Raises:
        UnknownName: If a name is in no list.
        InvalidRequest: If a flow model is asked for a diffusion scheduler or the reverse.
    """
    if scheduler not in NATIVE_SCHEDULERS and scheduler not in DIFFUSERS_SCHEDULERS:
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


def fitting_schedulers(prediction_type: str) -> tuple[str, ...]:
    """Return the names that fit models of a prediction type, sorted."""
    if prediction_type == "flow":
        return tuple(sorted((*FLOW_SCHEDULERS, *_FLOW_ONLY, *_EITHER)))
    native = set(NATIVE_SCHEDULERS) - FLOW_SCHEDULERS
    return tuple(sorted((*native, *_DIFFUSION_ONLY, *_EITHER)))


def evaluation_steps(
    scheduler: str, num_steps: int, config: Mapping[str, Any] | None = None
) -> tuple[int, ...]:
    """Tell for each network call which user step it belongs to.

    Args:
        scheduler: A known scheduler.
        num_steps: Steps asked for, >= 1.
        config: The model's diffusers scheduler configuration (PNDM asks it).

    Returns:
        One step number, from 1, for each network call, in order.

    Source: the length of ``scheduler.timesteps`` in diffusers 0.42.

    Example:
        >>> evaluation_steps("heun", 3)
        (1, 1, 2, 2, 3)
    """
    steps = range(1, num_steps + 1)
    if scheduler in _TWO_CALLS_A_STEP:
        return tuple(step for step in steps for _ in range(2))[:-1]
    if scheduler == "PNDMScheduler":
        return _pndm_steps(num_steps, skip_prk=bool((config or {}).get("skip_prk_steps", False)))
    return tuple(steps)


def _pndm_steps(num_steps: int, *, skip_prk: bool) -> tuple[int, ...]:
    """PNDM: 12 Runge-Kutta calls for the first three steps, or one step called twice."""
    if skip_prk:
        return (1, *range(1, num_steps + 1)) if num_steps > 1 else (1,)
    start = tuple(step for step in range(1, min(num_steps, 3) + 1) for _ in range(4))
    return start + tuple(range(4, num_steps + 1))
