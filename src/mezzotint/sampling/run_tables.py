"""Run tables: the whole of a run's solver, in plain numbers.

Noise levels and the rule of a scheduler fill one table for each run; what the field calls a
solver is applied to pictures by :mod:`mezzotint.sampling.solvers`. Nothing here needs torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.registry import Registry
from mezzotint.sampling.rules import RULES
from mezzotint.sampling.tables import Evaluation, Rule
from mezzotint.sampling.timesteps import Schedule, inference_schedule
from mezzotint.schedulers import NATIVE, SchedulerInfo

__all__ = ["SCHEDULERS", "Clip", "Scheduler", "SolverTable", "plan_table", "tabulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What a model's scheduler does to ``denoised``: nothing, clamp, or dynamic thresholding."""

    limit: float | None = None
    quantile: float | None = None
    maximum: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverTable:
    """A whole run of one solver."""

    scheduler: str
    frame: str
    evaluations: tuple[Evaluation, ...]
    init_noise_sigma: float
    clip: Clip = Clip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """A scheduler by name: its noise levels and the rule that fills its table."""

    info: SchedulerInfo
    rule: Rule


SCHEDULERS: Registry[Scheduler] = Registry(
    "scheduler",
    {name: Scheduler(info=NATIVE[name], rule=rule) for name, rule in RULES.items()},
    group="mezzotint.schedulers",
)
"""Built-in schedulers by name; plug-ins add theirs as :class:`Scheduler` objects."""


def tabulate(
    scheduler: str, schedule: Schedule, config: Mapping[str, Any] | None = None, *, first: int = 0
) -> SolverTable:
    """Fill the table of a run.

    Args:
        scheduler: Name in ``SCHEDULERS``.
        schedule: The noise levels of the whole run.
        config: The model's scheduler configuration.
        first: Step to start at, counted from 0; later than 0 on a start image.

    Raises:
        UnknownName: If the scheduler does not exist.
        InvalidRequest: If the scheduler and the schedule are of different frames.
    """
    config = config or {}
    found = SCHEDULERS[scheduler]
    if found.info.frame != schedule.frame:
        raise InvalidRequest(
            f"scheduler {scheduler} is for {found.info.frame} models, this one is a "
            f"{schedule.frame} model",
            field="scheduler",
        )
    evaluations = found.rule(schedule, config, first)
    return SolverTable(
        scheduler=scheduler,
        frame=schedule.frame,
        evaluations=tuple(evaluations),
        init_noise_sigma=schedule.init_noise_sigma,
        clip=_clip_of(found.info, config),
    )


def plan_table(
    scheduler: str,
    config: Mapping[str, Any],
    num_steps: int,
    sigma_schedule: str | None = None,
    *,
    first: int = 0,
    sequence_length: int = 0,
) -> SolverTable:
    """Make schedule and table in one call; arguments as there."""
    info = SCHEDULERS[scheduler].info
    schedule = inference_schedule(
        info, config, num_steps, sigma_schedule, sequence_length=sequence_length
    )
    return tabulate(scheduler, schedule, config, first=first)


def _clip_of(info: SchedulerInfo, config: Mapping[str, Any]) -> Clip:
    """Read what the model's scheduler does to denoised, if its class does anything."""
    if config.get("thresholding") and info.twin.thresholds:
        return Clip(
            quantile=float(config.get("dynamic_thresholding_ratio", 0.995)),
            maximum=float(config.get("sample_max_value", 1.0)),
        )
    if config.get("clip_sample") and info.twin.clips:
        return Clip(limit=float(config.get("clip_sample_range", 1.0)))
    return Clip()
