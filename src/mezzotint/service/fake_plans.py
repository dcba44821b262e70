"""Fake plans: what the fake service says of models, and of a request before it runs."""

import hashlib
from collections.abc import Mapping
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.request import GenerationRequest, GuidanceSchedule

__all__ = ["describe_model", "describe_plan"]


def describe_model(
    model: Mapping[str, Any], *, name: str, version: str, is_default: bool
) -> dict[str, Any]:
    """Return a model as the service port lists it."""
    side = 64 if model["family"] == "gan" else 128
    return {
        "name": name,
        "version": version,
        "default": is_default,
        "digest": hashlib.sha256(f"{name}@{version}".encode()).hexdigest(),
        "family": model["family"],
        "ready": model.get("ready", True),
        "path": model.get("path", ""),
        "licence": "Apache-2.0",
        "takes_prompt": model["takes_prompt"],
        "size_multiple": 8,
        "min_size_px": 8,
        "max_size_px": model["max_size_px"],
        "defaults": {
            "width": side,
            "height": side,
            "num_inference_steps": 0 if model["family"] == "gan" else 4,
            "guidance_scale": 5.0,
            "scheduler": "euler",
            "sigma_schedule": None,
        },
        "limits": [],
    }


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
