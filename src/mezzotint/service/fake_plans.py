"""Fake plans: what the fake service says of a request before it runs."""

from collections.abc import Mapping
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.request import GenerationRequest, GuidanceSchedule

__all__ = ["describe_plan"]


def describe_plan(request: GenerationRequest, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a request with a model's defaults; curves of guidance but lists are flat.

    Raises:
        InvalidRequest: If it asks for an animation.
    """
    if request.output.animation is not None:
        raise InvalidRequest("the fake draws no animations", field="output.animation")
    scale, values = request.guidance_scale, ()
    if isinstance(scale, GuidanceSchedule):
        scale, values = scale.start, scale.values
    scale = defaults["guidance_scale"] if scale is None else scale
    steps = request.num_inference_steps or defaults["num_inference_steps"]
    return {
        "model": request.model,
        "width": request.width or defaults["width"],
        "height": request.height or defaults["height"],
        "num_inference_steps": steps,
        "scheduler": request.scheduler or defaults["scheduler"],
        "guidance_scale": scale,
        "guidance": list(values or [scale] * steps),
        "seed": request.seed,
    }
