"""Guidance of a run: the scale of each step, and the negative prompt where it acts."""

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.guidance_curve import resolve_guidance, run_progress
from mezzotint.planning.plan import Techniques
from mezzotint.planning.steps import count_steps
from mezzotint.request import GenerationRequest, GuidanceSchedule

__all__ = ["resolve_negative", "resolve_scales"]

_OF_CONTROLS = {"flux": 3.5}
"""Guidance that ControlNets of a family read though the model reads none, where nobody says:
what the model that they were trained on (FLUX.1 [dev]) is drawn with."""


def resolve_scales(
    request: GenerationRequest,
    spec: ModelSpec,
    num_steps: int,
    warnings: list[str],
    *,
    scheduler: str,
    sigma_schedule: str | None,
) -> tuple[tuple[float, ...], Techniques]:
    """Return the scale of each step and the techniques that guidance brings."""
    asked = request.guidance_scale
    off = (1.0,) * num_steps
    is_distilled = spec.takes_distilled_guidance
    default = spec.default_guidance_scale
    if request.controls and not is_distilled and spec.family in _OF_CONTROLS:
        is_distilled, default = True, _OF_CONTROLS[spec.family]
    if not spec.has_steps or not (spec.takes_guidance or is_distilled):
        if asked not in (None, 1.0):
            warnings.append(f"guidance_scale has no effect on {spec.name}")
        return off, Techniques()
    scale = default if asked is None else asked
    if is_distilled:
        values = set(resolve_guidance(scale, max(num_steps, 1)))
        if len(values) > 1:
            raise InvalidRequest(
                f"guidance_scale must be one number for {spec.name}: a network takes the "
                "scale as an input",
                field="guidance_scale",
                allowed="a number",
            )
        return off, Techniques(distilled_guidance=values.pop())
    rescale = scale.rescale if isinstance(scale, GuidanceSchedule) else 0.0
    progress = None
    if (isinstance(scale, GuidanceSchedule) or callable(scale)) and scheduler and num_steps:
        total = count_steps(request, spec)
        progress = run_progress(
            scheduler, spec.scheduler_config, total, sigma_schedule, first=total - num_steps
        )
    guidance = resolve_guidance(scale, num_steps, progress)
    used = rescale if any(s != 1 for s in guidance) else 0.0
    return guidance, Techniques(guidance_rescale=used)


def resolve_negative(
    request: GenerationRequest, spec: ModelSpec, *, guided: bool, warnings: list[str]
) -> str:
    """Keep the negative prompt only where unconditional rows are computed."""
    if not request.negative_prompt:
        return ""
    if not spec.takes_negative_prompt:
        warnings.append(f"negative_prompt has no effect on {spec.name}")
        return ""
    if not guided:
        warnings.append("negative_prompt has no effect while guidance is off (guidance_scale 1)")
        return ""
    return request.negative_prompt
