"""A1111's techniques: inpainting, variation seeds and the hires pass, in its own words.

What a body leaves out is as A1111's API has it, not as its page has it: a mask is
filled from its surroundings and painted at full size.
"""

import secrets
from typing import Any

from mezzotint.errors import InvalidRequest
from mezzotint.serve.wire import Fields
from mezzotint.types import MAX_SEED

__all__ = ["read_hires", "read_inpaint", "read_seed", "read_variation"]

_FILLS = ("surroundings", "original", "noise", "nothing")  # A1111 counts them from 0


def read_seed(seed: int) -> int | None:
    """Read a seed; -1 draws one."""
    if seed == -1:
        return None
    if not 0 <= seed <= MAX_SEED:
        raise InvalidRequest(
            f"seed must be -1 or 0 to {MAX_SEED}, got {seed}", field="seed", value=seed
        )
    return seed


def read_inpaint(fields: Fields) -> dict[str, Any]:
    """Read how the mask is painted; what is not said is as A1111's API has it."""
    blur = fields.number("mask_blur", 0, 512, 4)
    fill = int(fields.number("inpainting_fill", 0, 3, 0, int))
    padding = int(fields.number("inpaint_full_res_padding", 0, 4096, 0, int))
    return {
        "invert": fields.flag("inpainting_mask_invert"),
        "blur": blur,
        "fill": _FILLS[fill],
        "area": "masked" if fields.take("inpaint_full_res", bool, True) else "whole",
        "padding": padding,
        "paste": True,
    }


def read_variation(fields: Fields) -> dict[str, Any] | None:
    """Read the variation seed and the size that noise is drawn for."""
    strength = fields.number("subseed_strength", 0, 1, 0)
    width = fields.take("seed_resize_from_w", int, 0)
    height = fields.take("seed_resize_from_h", int, 0)
    found: dict[str, Any] = {}
    if strength:
        subseed = read_seed(fields.take("subseed", int, -1))
        drawn = secrets.randbits(32) if subseed is None else subseed
        found |= {"seed": drawn, "strength": strength}
    if width > 0 and height > 0:
        found |= {"noise_width": width, "noise_height": height}
    return found or None


def read_hires(fields: Fields, warnings: list[str]) -> dict[str, Any] | None:
    """Read the hires fields: a second pass over what the first drew, enlarged."""
    if not fields.take("enable_hr", bool, False):
        return None
    name = str(fields.take("hr_upscaler", str, "Latent") or "Latent")
    upscaler = _hires_upscaler(name)
    if upscaler is None:
        upscaler = "latent"
        warnings.append(f"hr_upscaler {name[:80]!r} is not offered here; Latent was used")
    found: dict[str, Any] = {
        "scale": fields.number("hr_scale", 1, 8, 2.0),
        "strength": fields.number("denoising_strength", 0, 1, 0.75),
        "upscaler": upscaler,
    }
    steps = int(fields.number("hr_second_pass_steps", 0, 1000, 0, int))
    sides = {
        "width": fields.take("hr_resize_x", int, 0),
        "height": fields.take("hr_resize_y", int, 0),
    }
    words = {
        "prompt": fields.take("hr_prompt", str, ""),
        "negative_prompt": fields.take("hr_negative_prompt", str, ""),
        "num_inference_steps": steps,
    }
    return found | {name: value for name, value in (sides | words).items() if value}


def _hires_upscaler(name: str) -> str | None:
    """Return our name of an A1111 upscaler."""
    lower = name.lower()
    if lower.startswith("latent"):
        return "latent"
    if lower in ("none", "lanczos", "nearest"):
        return "lanczos"
    return "real-esrgan" if "esrgan" in lower else None
