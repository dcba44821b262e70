"""Steps: which network evaluations a run makes, and how many rows each of them has."""

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.plan import Techniques
from mezzotint.planning.schedulers import calls_after, evaluation_steps
from mezzotint.request import GenerationRequest

__all__ = ["count_rows", "count_steps", "is_stepped", "resolve_steps", "run_steps"]

_DEFAULT_STRENGTH = GenerationRequest().strength


def is_stepped(spec: ModelSpec) -> bool:
    """Whether the engine itself takes the model's steps: no GAN, no pipeline run whole."""
    return spec.has_steps and spec.stepwise


def count_steps(request: GenerationRequest, spec: ModelSpec) -> int:
    """Return the steps of the whole schedule."""
    if not spec.has_steps:
        return 0
    return request.num_inference_steps or spec.default_steps


def resolve_steps(
    request: GenerationRequest, spec: ModelSpec, warnings: list[str]
) -> tuple[int, ...]:
    """Return the step of each network evaluation, those that a start image skips left out."""
    if not is_stepped(spec):
        names = (
            "scheduler",
            "sigma_schedule",
            *(() if spec.has_steps else ("num_inference_steps",)),
        )
        reason = "it runs whole" if spec.has_steps else "it takes no steps"
        for name in names:
            if getattr(request, name) is not None:
                warnings.append(f"{name} has no effect on {spec.name}: {reason}")
        total = count_steps(request, spec)
        run = total if request.image is None else _num_run(total, request.strength, "strength")
        return tuple(range(1, run + 1)) if spec.tells_steps else ()
    total = count_steps(request, spec)
    scheduler = request.scheduler or spec.default_scheduler
    steps = evaluation_steps(scheduler, total, spec.scheduler_config)
    if request.image is None:
        if request.strength != _DEFAULT_STRENGTH:
            warnings.append("strength has no effect without image")
        return steps
    return run_steps(scheduler, total, request.strength, spec, field="strength")


def run_steps(
    scheduler: str, total: int, strength: float, spec: ModelSpec, *, field: str
) -> tuple[int, ...]:
    """Return the step of each evaluation of the last ``strength`` of a schedule, from 1."""
    skipped = total - _num_run(total, strength, field)
    return calls_after(scheduler, total, skipped, spec.scheduler_config)


def _num_run(total: int, strength: float, field: str) -> int:
    """Return how many of all steps are run at a strength: one at least."""
    run = min(int(total * strength), total)
    if run < 1:
        raise InvalidRequest(
            f"{field} must be at least {1 / total:g} for {total} steps, got {strength:g}",
            field=field,
            value=strength,
            allowed=f"{1 / total:g} to 1",
        )
    return run


def count_rows(
    steps: tuple[int, ...], guidance: tuple[float, ...], techniques: Techniques
) -> tuple[int, ...]:
    """Count the rows of each evaluation: conditional, regional, unconditional, per denoiser."""
    count = len(guidance)
    rows: list[int] = []
    for step in steps:
        active = techniques.active_regions(step, count)
        negatives = len({r.negative_prompt for r in active if r.negative_prompt})
        unprompted = (1 + negatives) if guidance[step - 1] != 1 else 0
        prompted = techniques.prompt_rows(step, count)
        rows.append(prompted + prompted // (1 + len(active)) * unprompted)
    return tuple(rows)
