"""Planner: a request and a spec become one plan per image, purely.

Every refusal is one line that names the field, what came and what is allowed.
What is changed instead of refused is a warning for the result.
"""

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.plain import exchange, field_names
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.adapters import read_tags, resolve_adapters
from mezzotint.planning.ensemble import resolve_ensemble
from mezzotint.planning.guidance import resolve_negative, resolve_scales
from mezzotint.planning.plan import (
    OUTSIDE,
    Plan,
    Planned,
    Resolved,
    Techniques,
    WalkPosition,
    image_seed,
)
from mezzotint.planning.refusals import check_techniques
from mezzotint.planning.schedulers import check_scheduler, family_schedule, scheduler_notes
from mezzotint.planning.second_pass import add_second_pass
from mezzotint.planning.sizing import (
    check_pixels,
    check_upscaled,
    resolve_size,
)
from mezzotint.planning.steps import count_rows, count_steps, resolve_steps
from mezzotint.planning.tiers import choose
from mezzotint.request import GenerationRequest, Output, Variation
from mezzotint.techniques.table import ADAPTERS, TECHNIQUES
from mezzotint.techniques.walking import may_show, pictures_of
from mezzotint.types import ImageInput, Size

__all__ = ["draw_seed", "plan"]


def draw_seed() -> int:
    """Return a seed; 32 bits, because some clients keep no more."""
    return secrets.randbits(32)


def plan(
    request: GenerationRequest,
    spec: ModelSpec,
    abilities: Abilities | None = None,
    *,
    image_size: Size | None = None,
    draw_seed: Callable[[], int] = draw_seed,
) -> Planned:
    """Resolve a request against a model.

    Args:
        request: What the user asked for.
        spec: The model that was named.
        abilities: What the engine can do; nothing beyond text to picture if None.
        image_size: Size of ``request.image`` in pixels, or of the first of
            ``request.image_references``, where there is one.
        draw_seed: Gives the seed where the request has none.

    Returns:
        One plan per image, in order, and the warnings.

    Raises:
        InvalidRequest: If the model or the engine cannot honour a field.
    """
    abilities = abilities or Abilities()
    warnings: list[str] = []
    request = read_tags(request, spec, abilities)
    check_techniques(request, spec, abilities)
    size = resolve_size(request, spec, image_size, warnings)
    check_pixels(request, size, abilities)
    if len(request.passes()) == 1:
        check_upscaled(request, size, abilities)
    prompt = _resolve_prompt(request, spec, warnings)
    steps = resolve_steps(request, spec, warnings)
    scheduler = request.scheduler or spec.default_scheduler
    sigma_schedule = request.sigma_schedule or (
        spec.default_sigma_schedule if request.scheduler in (None, spec.default_scheduler) else None
    )
    sigma_schedule = family_schedule(sigma_schedule, spec.family)
    if spec.has_steps and spec.stepwise:
        check_scheduler(scheduler, sigma_schedule, prediction_type=spec.prediction_type)
        warnings += scheduler_notes(
            scheduler, request.sigma_schedule, count_steps(request, spec), spec.scheduler_config
        )
    else:
        scheduler, sigma_schedule = "", None
    guidance, techniques = resolve_scales(
        request,
        spec,
        len(set(steps)),
        warnings,
        scheduler=scheduler,
        sigma_schedule=sigma_schedule,
    )
    techniques = _resolve_techniques(
        request, spec, abilities, techniques, len(guidance), warnings=warnings
    )
    guided = any(scale != 1 for scale in guidance) or not spec.stepwise
    seed = request.seed if request.seed is not None else draw_seed()
    if request.variation is not None:
        variation = _resolve_variation(request, spec, seed)
        if variation.noise_size is not None:
            noise = variation.noise_size
            check_pixels(request, noise, abilities, field="variation.noise_width")
        techniques = replace(techniques, variation=variation)
    shortcuts = choose(
        request.reproducibility,
        spec,
        techniques,
        steps=steps,
        rows=count_rows(steps, guidance, techniques),
        precision=abilities.precision(request.model),
    )
    warnings.extend(shortcuts.warnings)
    one = Plan(
        model=spec.name,
        model_digest=spec.digest,
        environment=_environment(abilities.environment, spec),
        prompt=prompt,
        negative_prompt=resolve_negative(
            request, spec, guided=guided or not spec.stepwise, warnings=warnings
        ),
        prompt_dialect=request.prompt_dialect,
        size=size,
        seed=seed,
        num_inference_steps=count_steps(request, spec),
        scheduler=scheduler,
        sigma_schedule=sigma_schedule,
        steps=steps,
        rows=shortcuts.rows,
        guidance=guidance,
        techniques=techniques,
        output=_resolve_output(request),
        reproducibility=request.reproducibility,
        reused=shortcuts.reused,
        shortcuts=shortcuts.names,
    )
    one = add_second_pass(one, request, spec, abilities, warnings)
    return Planned(plans=_images(one, request), warnings=tuple(warnings))


def _resolve_variation(request: GenerationRequest, spec: ModelSpec, seed: int) -> Variation:
    """Give the other seed, and hold the size of the noise to what the model can draw."""
    asked = request.variation
    assert asked is not None  # noqa: S101 - the caller saw to it
    size = asked.noise_size
    if size and (spec.fixed_size or any(side % spec.size_multiple for side in size)):
        raise InvalidRequest(
            f"variation.noise_width and noise_height must be multiples of "
            f"{spec.size_multiple} px of a model with free sizes, got {size} for {spec.name}",
            field="variation.noise_width",
            value=str(size),
            allowed=f"multiples of {spec.size_multiple} px",
        )
    return exchange(asked, seed=asked.seed if asked.seed is not None else image_seed(seed, 1))


def _resolve_output(request: GenerationRequest) -> Output:
    """Return how a picture is written; frames of an animation are kept without loss."""
    return request.output if request.output.animation is None else Output()


def _images(plan: Plan, request: GenerationRequest) -> tuple[Plan, ...]:
    """Multiply one plan into those of all images."""
    if request.walk is None:
        count = range(request.num_images)
        return tuple(_image(plan, k) for k in count)
    walk = request.walk
    if walk.mode in ("seed", "both") and walk.to_seed is None:
        walk = exchange(walk, to_seed=image_seed(plan.seed, 1))
    frames = [WalkPosition(frame=k, walk=walk) for k in range(walk.frames)]
    return tuple(_with_techniques(plan, walk=frame) for frame in frames)


def _image(plan: Plan, index: int) -> Plan:
    """Return the plan of image ``index``: its seed and its other seed count up."""
    if not index:
        return plan
    plan = plan.with_seed(image_seed(plan.seed, index))
    variation = plan.techniques.variation
    if variation is None:
        return plan
    assert variation.seed is not None  # noqa: S101 - _resolve_variation gave it
    variation = exchange(variation, seed=image_seed(variation.seed, index))
    return replace(plan, techniques=replace(plan.techniques, variation=variation))


def _with_techniques(plan: Plan, **changes: Any) -> Plan:
    """Change techniques in all passes."""
    second = _with_techniques(plan.second, **changes) if plan.second else None
    return replace(plan, techniques=replace(plan.techniques, **changes), second=second)


def _environment(common: str, spec: ModelSpec) -> str:
    """Return what arithmetic depends on, with the model's own placement in place of the common."""
    if not spec.placement:
        return common
    options = dict(spec.placement)
    found: dict[str, Any] = json.loads(common) if common else {}
    if dtype := options.pop("dtype", None):
        found["dtype"] = dtype
    if options:
        found["placement"] = {**found.get("placement", {}), **options}
    return json.dumps(found, sort_keys=True)


def _resolve_prompt(request: GenerationRequest, spec: ModelSpec, warnings: list[str]) -> str:
    """Refuse a missing prompt; leave out one that means nothing to the model."""
    label = request.latent.class_label
    if spec.family == "dit" and label is None:
        raise InvalidRequest(
            f"latent.class_label is needed for {spec.name}: 0 to {spec.num_classes - 1}",
            field="latent.class_label",
            allowed=f"0 to {spec.num_classes - 1}",
        )
    if label is not None and not 0 <= label < spec.num_classes:
        allowed = f"0 to {spec.num_classes - 1}" if spec.num_classes else "no class label"
        raise InvalidRequest(
            f"latent.class_label must be {allowed} for {spec.name}, got {label}",
            field="latent.class_label",
            value=label,
            allowed=allowed,
        )
    if request.latent.truncation != 1 and spec.has_steps:
        warnings.append(f"latent.truncation has no effect on {spec.name}: it is for GANs")
    if not spec.takes_prompt:
        if request.prompt.strip():
            warnings.append(f"prompt has no effect on {spec.name}: it takes no text")
        return ""
    if not request.prompt.strip() and request.image is None and not request.regions:
        raise InvalidRequest(
            f"prompt is needed for {spec.name}, got an empty text", field="prompt", allowed="a text"
        )
    return request.prompt


def _resolve_techniques(
    request: GenerationRequest,
    spec: ModelSpec,
    abilities: Abilities,
    techniques: Techniques,
    num_steps: int,
    *,
    warnings: list[str],
) -> Techniques:
    """Resolve the technique fields; names become content digests."""
    values = {name: _carried(getattr(request, name)) for name in _CARRIED}
    if request.image is not None:
        values["strength"] = request.strength
    if not spec.has_steps:
        values["truncation"] = request.latent.truncation
    values["class_label"] = request.latent.class_label
    digest = abilities.adapter_digest
    values.update(resolve_adapters(request, abilities, warnings))
    values["ensemble"] = resolve_ensemble(request, num_steps, digest)
    if request.upscale is not None:
        name, content = abilities.upscaler(request.upscale.model or "lanczos")
        model = None if name == "lanczos" else name
        values["upscale"] = Resolved(part=exchange(request.upscale, model=model), digest=content)
    if request.outpaint is not None and request.mask is None:
        values["mask"] = OUTSIDE
    if values["mask"] is not None:
        values["inpaint"] = request.inpaint
    return replace(techniques, **values)


def _carried(asked: Any) -> Any:
    """Return what a plan holds of a technique that needs no resolving: pictures as digests."""
    if isinstance(asked, ImageInput):
        return asked.digest
    if isinstance(asked, tuple):
        return tuple(_carried(item) for item in cast("tuple[Any, ...]", asked))
    if may_show(cast("type[Any]", type(asked))):
        return Resolved(part=asked, pictures=tuple(p.digest for _, p in pictures_of(asked)))
    return asked


_OWN = frozenset((*ADAPTERS, "ensemble", "upscale", "variation", "walk"))
"""What is resolved by rules of its own."""
_CARRIED = tuple(
    t.field for t in TECHNIQUES if t.field in field_names(Techniques) and t.field not in _OWN
)
"""The techniques that a plan holds as they were asked for."""
