"""The second pass over what the first one draws: its plan, and its part of a request."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.models.spec import ModelSpec
from mezzotint.planning.abilities import Abilities
from mezzotint.planning.ensemble import resolve_ensemble
from mezzotint.planning.guidance import resolve_negative, resolve_scales
from mezzotint.planning.plan import ENLARGED, Plan
from mezzotint.planning.sizing import check_pixels, check_side, check_upscaled, fit_side
from mezzotint.planning.steps import count_rows, run_steps
from mezzotint.request import GenerationRequest, Hires
from mezzotint.techniques.tags import LoraTag, lora_tags
from mezzotint.types import Size

__all__ = ["add_second_pass", "second_part", "without_tags"]


def add_second_pass(
    one: Plan,
    request: GenerationRequest,
    spec: ModelSpec,
    abilities: Abilities,
    warnings: list[str],
) -> Plan:
    """Add the pass over the enlarged picture where a request asks for one.

    Args:
        one: The plan of the first pass.
        request: What the user asked for.
        spec: The model that was named.
        abilities: What the engine can do.
        warnings: What is changed goes in here.

    Raises:
        InvalidRequest: If the model or the engine cannot honour a field.
    """
    hires = request.hires
    if hires is None:
        return one
    sides = [
        given if given is not None else fit_side(round(side * hires.scale), spec)
        for given, side in zip((hires.width, hires.height), one.size, strict=True)
    ]
    for name, side in zip(("hires.width", "hires.height"), sides, strict=True):
        check_side(name, side, spec)
    size = Size(*sides)
    check_pixels(request, size, abilities, field="hires.width")
    check_upscaled(request, size, abilities)
    if hires.upscaler != "latent" and not spec.takes_image:
        raise InvalidRequest(
            f"hires.upscaler must be latent for {spec.name}: it has no picture encoder",
            field="hires.upscaler",
            value=hires.upscaler,
            allowed="latent",
        )
    total = hires.num_inference_steps or one.num_inference_steps
    steps = run_steps(one.scheduler, total, hires.strength, spec, field="hires.strength")
    guidance, _ = resolve_scales(
        replace(request, num_inference_steps=total),
        spec,
        len(set(steps)),
        [],
        scheduler=one.scheduler,
        sigma_schedule=one.sigma_schedule,
    )
    negative = one.negative_prompt
    if hires.negative_prompt is not None:
        asked = replace(request, negative_prompt=hires.negative_prompt)
        guided = any(scale != 1 for scale in guidance)
        negative = resolve_negative(asked, spec, guided=guided, warnings=warnings)
    techniques = replace(
        one.techniques,
        image=ENLARGED,
        strength=hires.strength,
        variation=None,
        upscale=None,
        upscaler=abilities.upscaler(hires.upscaler),
        first_steps=one.num_inference_steps,
        ensemble=resolve_ensemble(request, len(guidance), abilities.adapter_digest),
    )
    second = replace(
        one,
        prompt=one.prompt if hires.prompt is None else hires.prompt,
        negative_prompt=negative,
        size=size,
        num_inference_steps=total,
        steps=steps,
        rows=count_rows(steps, guidance, techniques),
        guidance=guidance,
        techniques=techniques,
        reused=(),
        shortcuts=(),
    )
    return replace(one, second=second)


def second_part(request: GenerationRequest, plan: Plan) -> dict[str, Any]:
    """Return the field of a request that asks for a plan's second pass, all resolved."""
    second = plan.second
    if request.hires is None or second is None:
        return {"hires": None}
    is_longer = second.num_inference_steps != plan.num_inference_steps
    hires = Hires(
        width=second.size.width,
        height=second.size.height,
        strength=request.hires.strength,
        num_inference_steps=second.num_inference_steps if is_longer else None,
        upscaler=request.hires.upscaler,
        prompt=second.prompt if second.prompt != plan.prompt else None,
        negative_prompt=(
            second.negative_prompt if second.negative_prompt != plan.negative_prompt else None
        ),
    )
    return {"hires": hires}


def without_tags(request: GenerationRequest, worn: Collection[LoraTag]) -> dict[str, Any]:
    """Take the tags out of a second pass's prompts; it wears what the first pass wears.

    Args:
        request: With or without a second pass.
        worn: What the prompt names.

    Returns:
        The field to exchange.

    Raises:
        InvalidRequest: If a tag names what the first pass does not wear.
    """
    hires = request.hires
    if hires is None:
        return {}
    prompt, tags = lora_tags(hires.prompt or "")
    negative, _ = lora_tags(hires.negative_prompt or "")
    for tag in tags:
        if tag not in worn:
            raise InvalidRequest(
                f"hires.prompt names LoRA {tag.name} at {tag.scale:g}, which prompt does not: "
                "both passes wear the same",
                field="hires.prompt",
                value=tag.name,
                allowed="LoRAs of prompt",
            )
    changed = replace(
        hires,
        prompt=None if hires.prompt is None else prompt,
        negative_prompt=None if hires.negative_prompt is None else negative,
    )
    return {"hires": changed}
