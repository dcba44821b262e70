"""Spec: what a model is and can do, known without loading its weights.

The planner, the doors and the batcher read a spec; only the runner touches the
model itself. A spec is plain frozen data, so it can cross a process border.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mezzotint.types import Size

__all__ = ["Family", "ModelSpec", "PredictionType"]

Family = Literal[
    "sd",
    "sdxl",
    "sd3",
    "chroma",
    "flux",
    "flux2",
    "flux2-dev",
    "lumina2",
    "pixart",
    "sana",
    "z-image",
    "qwen-image",
    "qwen-image-2",
    "unconditional",
    "dit",
    "gan",
    "denoiser",
    "foreign",
]
"""``sd`` is Stable Diffusion 1.x/2.x and ``plate``; ``denoiser`` is a run of our own trainer that
fits no other family; ``foreign`` is any other diffusers pipeline, served whole."""

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Shape, abilities, limits and defaults of one model.

    Args:
        name: Name in the store, or the path it was loaded from.
        digest: sha256 over the content of all its files, 64 hex digits.
        family: Which adapter runs it.
        prediction_type: What the network predicts; the denoiser converts it.
        scheduler_config: The diffusers scheduler configuration that came with
            the model (betas, spacing, prediction type, shift, ...), plain data.
        latent_channels: Channels of the latents; for a GAN the length of z.
        latent_scale: Pixels per latent row and column (8 for most VAEs, 1 for
            pixel-space models; for FLUX-like packing still the VAE's factor).
        size_multiple: Width and height must be multiples of this, in pixels.
        default_size: What the model was trained at, pixels.
        min_size_px: Smallest allowed side.
        max_size_px: Largest allowed side.
        fixed_size: True if only ``default_size`` can be drawn (GANs).
        default_steps: ``num_inference_steps`` where a request says nothing.
        default_guidance_scale: ``guidance_scale`` where a request says nothing.
        default_scheduler: ``scheduler`` where a request says nothing.
        default_sigma_schedule: ``sigma_schedule`` where a request says nothing,
            or None for the scheduler's own.
        takes_prompt: Whether text means anything to the model.
        takes_negative_prompt: Whether a negative prompt means anything.
        takes_guidance: Whether classifier-free guidance applies.
        takes_distilled_guidance: Whether ``guidance_scale`` is an input of the
            network (FLUX, LCM) instead of a second row.
        guidance_norm_block: Channels, rows and columns of the blocks of latents whose guided
            prediction keeps the length of the unguided one (Qwen-Image, Lumina 2), 0 for all;
            None for no such blocks.
        takes_image: Whether image to image works (an encoder is there).
        needs_image: Whether it draws nothing without ``image``.
        takes_mask: Whether a part of ``image`` may be repainted, where an image is taken.
        needs_mask: Whether it draws nothing without ``mask``.
        min_references: Pictures of ``image_references`` that it draws nothing without.
        max_references: Pictures of ``image_references`` that it takes, 0 for none.
        num_classes: Number of class labels, 0 if not class-conditional.
        class_names: Names of the classes, if known.
        has_mapping: Whether a GAN has a mapping network from z to w.
        token_limit: Tokens of one prompt chunk, start and end included; 0 without text.
        has_steps: False for a GAN, whose plan has zero denoising steps.
        token_width: Width of a picture's token in a transformer that ControlNets steer; 0 where
            they steer none, or a U-Net.
        stepwise: False for ``foreign`` pipelines, which run whole and join no batch.
        tells_steps: Whether a pipeline that runs whole tells of its steps, so that they are
            counted and it ends at the next one when it is cancelled.
        tile_px: Side of a tile in pixels, where larger pictures are decoded in tiles; 0 where
            they are decoded whole.
        licence: SPDX id or a short sentence.
        num_bytes: Bytes of its weights in memory, 0 where nobody says.
        limits: Things the model cannot do, one sentence each, for people.
        placement: Placement options that are its own, by name.
        path: Where the files are, for ``models show``; "" if in memory only.
    """

    name: str
    digest: str
    family: Family
    prediction_type: PredictionType = "none"
    scheduler_config: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    latent_channels: int = 4
    latent_scale: int = 8
    size_multiple: int = 8
    default_size: Size = Size(512, 512)
    min_size_px: int = 8
    max_size_px: int = 2048
    fixed_size: bool = False
    default_steps: int = 20
    default_guidance_scale: float = 7.5
    default_scheduler: str = "euler"
    default_sigma_schedule: str | None = None
    takes_prompt: bool = True
    takes_negative_prompt: bool = True
    takes_guidance: bool = True
    takes_distilled_guidance: bool = False
    guidance_norm_block: tuple[int, int, int] | None = None
    takes_image: bool = True
    needs_image: bool = False
    takes_mask: bool = True
    needs_mask: bool = False
    min_references: int = 0
    max_references: int = 0
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    has_mapping: bool = False
    token_limit: int = 77
    token_width: int = 0
    has_steps: bool = True
    stepwise: bool = True
    tells_steps: bool = False
    tile_px: int = 0
    licence: str = "unknown"
    num_bytes: int = 0
    limits: tuple[str, ...] = ()
    placement: Mapping[str, Any] = field(default_factory=dict[str, Any], hash=False)
    path: str = ""
