"""Adapting: what adapters add to the rows of an image.

Scales, control pictures and the tokens of image prompts are tensors of the rows'
conditionings, so images that differ in them share calls.

Dimensions: K ControlNets or IP-Adapters, H and W rows and columns of pixels, T tokens,
D width of the text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mezzotint.engine.execution.operators import Controlled, Operator
from mezzotint.models.adapters.controlnet import (
    CONTROL_GUESS,
    CONTROL_GUIDANCE,
    CONTROL_IMAGE,
    CONTROL_MODE,
    CONTROL_SCALES,
    CONTROL_TEXT,
)
from mezzotint.models.adapters.ip_adapter import IMAGE_SCALES, IMAGE_TOKENS
from mezzotint.models.base import Conditioning, Model
from mezzotint.models.families.whole_pictures import pack_pictures
from mezzotint.planning.assets import control_asset, prompt_asset, reference_asset
from mezzotint.planning.plan import Plan

__all__ = ["adapt", "reference_pictures", "under_control", "with_full_scales", "with_pictures"]


def adapt(
    plan: Plan,
    model: Model,
    assets: Mapping[str, Any] | None,
    encoded: Sequence[Conditioning],
    negatives: Sequence[bool],
) -> list[Conditioning]:
    """Put control pictures, pictures to edit and the tokens of image prompts beside the prompts.

    Args:
        plan: What is made.
        model: The view with the plan's adapters.
        assets: Prepared control pictures (3, H, W) in [0, 1] under
            :func:`~mezzotint.planning.assets.control_asset`; pictures of image prompts
            (H, W, 3), uint8, under :func:`~mezzotint.planning.assets.prompt_asset`, pictures
            to edit under :func:`~mezzotint.planning.assets.reference_asset`. None for a
            rehearsal: blank pictures stand in.
        encoded: One conditioning per prompt.
        negatives: Which of them are of the unconditional half.
    """
    t = plan.techniques
    if not (t.controls or t.image_prompts or _has_references(plan, model)):
        return list(encoded)
    common = _controls(plan, model, assets)
    if _has_references(plan, model):
        common |= model.encode_references(reference_pictures(plan, assets))
    with_picture: dict[str, Tensor] = {}
    without: dict[str, Tensor] = {}
    for k, prompt in enumerate(t.image_prompts):
        pictures = [
            np.zeros((8, 8, 3), np.uint8) if assets is None else assets[prompt_asset(k, digest)]
            for digest in prompt.pictures
        ]
        name = f"{IMAGE_TOKENS}{k:02d}"
        with_picture[name], without[name] = model.encode_image_prompt(k, pictures)
    if t.image_prompts:
        common[IMAGE_SCALES] = torch.tensor([[prompt.part.scale for prompt in t.image_prompts]])
    prompt = next(c for c, is_negative in zip(encoded, negatives, strict=True) if not is_negative)
    return [
        conditioning.replace(
            **common,
            **(without if is_negative else with_picture),
            **_steered(plan, model, prompt if is_negative else conditioning, is_negative),
        )
        for conditioning, is_negative in zip(encoded, negatives, strict=True)
    ]


def _controls(plan: Plan, model: Model, assets: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """Return what the ControlNets of every row read of their pictures."""
    found: dict[str, Tensor] = {}
    scale = plan.techniques.distilled_guidance
    if plan.techniques.controls and scale is not None and not model.spec.takes_distilled_guidance:
        found[CONTROL_GUIDANCE] = torch.tensor([float(scale)])
    for k, control in enumerate(plan.techniques.controls):
        asset = None if assets is None else assets[control_asset(control, plan.size)]
        picture = None if asset is None else torch.as_tensor(asset)[None]
        found[f"{CONTROL_IMAGE}{k:02d}"] = model.encode_control(k, picture, plan.size)
        if control.part.mode is not None:
            found[f"{CONTROL_MODE}{k:02d}"] = torch.tensor([[control.part.mode]])
    return found


def _steered(
    plan: Plan, model: Model, prompt: Conditioning, is_negative: bool
) -> dict[str, Tensor]:
    """Return what tells ControlNets of a row with or without the prompt.

    Args:
        plan: What is made.
        model: The view with the plan's ControlNets.
        prompt: What the row's ControlNets read as its prompt.
        is_negative: Whether the row is of the unconditional half.
    """
    controls = plan.techniques.controls
    found = {CONTROL_TEXT + name: prompt[name] for name in model.control_reads if controls}
    if any(control.part.guess for control in controls):
        sign = -1 if is_negative else 1
        found[CONTROL_GUESS] = torch.tensor([[sign * c.part.guess for c in controls]])
    return found


def _has_references(plan: Plan, model: Model) -> bool:
    """Whether pictures to edit are rows' own tensors; a model that runs whole packs them itself."""
    return bool(plan.techniques.image_references) and model.spec.stepwise


def reference_pictures(plan: Plan, assets: Mapping[str, Any] | None) -> list[Any]:
    """Return the pictures to edit, in order; blank ones for a rehearsal. Each (H, W, 3), uint8."""
    return [
        np.zeros((64, 64, 3), np.uint8) if assets is None else assets[reference_asset(digest)]
        for digest in plan.techniques.image_references
    ]


def with_pictures(
    plan: Plan, assets: Mapping[str, Any], conditioning: Conditioning
) -> Conditioning:
    """Put the pictures of a request beside the prompt of a model that runs whole.

    Args:
        plan: What is made.
        assets: Start picture and mask by the plan's names; pictures to edit under
            :func:`~mezzotint.planning.assets.reference_asset`.
        conditioning: Of the prompt, one row.
    """
    t = plan.techniques
    found = pack_pictures(
        None if t.image is None else assets[t.image],
        None if t.mask is None else assets[t.mask],
        [assets[reference_asset(digest)] for digest in t.image_references],
        strength=t.strength,
    )
    return conditioning.replace(**found) if found else conditioning


def with_full_scales(plan: Plan, conditioning: Conditioning) -> Conditioning:
    """Let every ControlNet of a plan act on one row, for a rehearsal."""
    count = len(plan.techniques.controls)
    scales = torch.ones((conditioning.rows, count))
    return conditioning.replace(**{CONTROL_SCALES: scales}) if count else conditioning


def under_control(plan: Plan, operator: Operator, device: torch.device) -> Operator:
    """Let a plan's ControlNets act at their steps."""
    controls = plan.techniques.controls
    if not controls:
        return operator
    count = plan.num_steps
    scales = [
        [c.part.scale if c.part.is_active(step, count) else 0.0 for c in controls]
        for step in range(1, count + 1)
    ]
    return Controlled(
        operator, CONTROL_SCALES, tuple(torch.tensor([row], device=device) for row in scales)
    )
