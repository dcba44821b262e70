"""A1111's techniques: prompts, inpainting, variation seeds and the hires pass, in its own words.

What a body leaves out is as A1111's API has it, not as its page has it: a mask is
filled from its surroundings and painted at full size.
"""

import math
import re
import secrets
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from mezzotint.request import GenerationRequest
from mezzotint.serve.dialects.a1111_bodies import ImageToImage, TextToImage
from mezzotint.techniques.walking import texts_of
from mezzotint.vocabulary import match_upscaler

__all__ = [
    "read_hires",
    "read_inpaint",
    "read_plainly",
    "read_seed",
    "read_strength",
    "read_variation",
]

_FILLS = ("surroundings", "original", "noise", "nothing")  # A1111 counts them from 0


_SYNTAX = re.compile(r"[()\[\]{}<>\\|]|\b(AND|BREAK)\b")
_CHUNK_BYTES = 75  # a chunk has 75 tokens, and no token stands for less than a byte


def read_plainly(request: GenerationRequest, embeddings: Iterable[str]) -> GenerationRequest:
    """Call texts plain that mean the same to A1111: the recipe is that of any other door.

    Args:
        request: In A1111's dialect.
        embeddings: Names that stand for something where a prompt holds them.
    """
    names = [name.lower() for name in embeddings]
    for text in texts_of(request):
        is_named = any(name in text.lower() for name in names)
        if is_named or _SYNTAX.search(text) or len(text.encode()) > _CHUNK_BYTES:
            return request
    return replace(request, prompt_dialect="plain")


def read_seed(seed: int) -> int | None:
    """Read a seed; -1 draws one."""
    return None if seed == -1 else seed


def read_inpaint(fields: ImageToImage) -> dict[str, Any]:
    """Read how the mask is painted; what is not said is as A1111's API has it."""
    return {
        "invert": bool(fields.inpainting_mask_invert),
        "blur": fields.mask_blur,
        "fill": _FILLS[int(fields.inpainting_fill)],
        "area": "masked" if fields.inpaint_full_res else "whole",
        "padding": fields.inpaint_full_res_padding,
        "paste": True,
    }


def read_variation(fields: TextToImage) -> dict[str, Any] | None:
    """Read the variation seed and the size that noise is drawn for."""
    width, height = fields.seed_resize_from_w, fields.seed_resize_from_h
    found: dict[str, Any] = {}
    if fields.subseed_strength:
        subseed = read_seed(fields.subseed)
        drawn = secrets.randbits(32) if subseed is None else subseed
        found |= {"seed": drawn, "strength": fields.subseed_strength}
    if width > 0 and height > 0:
        found |= {"noise_width": width, "noise_height": height}
    return found or None


def read_strength(fields: TextToImage, steps: int | None, warnings: list[str]) -> float:
    """Return how much is drawn anew: as much as one step at least, as A1111 does.

    Args:
        fields: What was sent.
        steps: Of the pass, None where the model has its own.
        warnings: Told where the strength was raised.
    """
    strength = fields.denoising_strength
    if steps is None or int(steps * strength) >= 1:
        return strength
    warnings.append(
        f"denoising_strength {strength:g} is less than one of {steps} steps; one step was run"
    )
    least = 1 / steps
    return least if int(steps * least) else math.nextafter(least, 1)


def read_hires(fields: TextToImage, warnings: list[str]) -> dict[str, Any] | None:
    """Read the hires fields: a second pass over what the first drew, enlarged."""
    if not fields.enable_hr:
        return None
    name = fields.hr_upscaler or "Latent"
    upscaler = match_upscaler(name)
    if upscaler is None:
        upscaler = "latent"
        warnings.append(f"hr_upscaler {name[:80]!r} is not offered here; Latent was used")
    found: dict[str, Any] = {
        "scale": fields.hr_scale,
        "strength": read_strength(fields, fields.hr_second_pass_steps or fields.steps, warnings),
        "upscaler": upscaler,
    }
    others = {
        "width": fields.hr_resize_x,
        "height": fields.hr_resize_y,
        "prompt": fields.hr_prompt,
        "negative_prompt": fields.hr_negative_prompt,
        "num_inference_steps": fields.hr_second_pass_steps,
    }
    return found | {name: value for name, value in others.items() if value}
