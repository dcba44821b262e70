"""Stable Diffusion 1.x, 2.x and XL, and every U-Net over latents steered by text.

The built-in ``plate`` is one of them, with BERT for CLIP.

Dimensions: R rows, C latent channels, h and w latent rows and columns, T tokens,
D hidden width, P pooled width.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.class_defaults import OUTDATED_PIPELINES
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.common import (
    default_size,
    drawing_defaults,
    part_of,
    prediction_type,
    sample_size,
)
from mezzotint.models.families.latent import LatentModel
from mezzotint.models.families.text import TextEncoder, call_penultimate, text_encoder
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule

__all__ = ["LatentUNetModel", "call_unet", "guidance_embedding"]

RESIDUAL = "down_residual_"
SIDE = 64  # of latents that Stable Diffusion 1.x was trained on
MID_RESIDUAL = "mid_residual"


def call_unet(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a UNet2DConditionModel with named tensors.

    ``text_embeds`` and ``time_ids`` are SDXL's; ``timestep_cond`` LCM's;
    ``down_residual_00`` ... and ``mid_residual`` come from ControlNets.
    """
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    downs = [inputs[name] for name in sorted(inputs) if name.startswith(RESIDUAL)]
    output = module(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        timestep_cond=inputs.get("timestep_cond"),
        added_cond_kwargs=added or None,
        down_block_additional_residuals=tuple(downs) or None,
        mid_block_additional_residual=inputs.get(MID_RESIDUAL),
        return_dict=False,
    )
    return (output[0],)


def guidance_embedding(scale: float, width: int) -> Tensor:
    """Return the guidance scale as sines and cosines.

    Args:
        scale: Guidance scale, 1 is off.
        width: Length of the embedding.

    Returns:
        Shape (1, width), float32.

    Source: Meng et al. 2022 (arXiv:2210.03142), the embedding latent
    consistency models were trained with: ``scale - 1`` times 1000.
    """
    half = width // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
    angles = (scale - 1) * 1000.0 * rates[None]
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, width - embedding.shape[1]))


def _trained_size(unet: Mapping[str, Any], pipeline: str, default: int) -> tuple[int, int]:
    """Return (rows, columns) of the latents a U-Net was trained on.

    Until diffusers 0.9 a ``sample_size`` below 64 stood there by mistake, and its
    Stable Diffusion pipelines read 64.
    """
    size = sample_size(unet, default)
    version = re.match(r"(\d+)\.(\d+)", str(unet.get("_diffusers_version", "")))
    is_old = version is not None and (int(version[1]), int(version[2])) < (0, 9)
    is_mistaken = isinstance(unet.get("sample_size"), int) and size[0] < SIDE
    if is_old and is_mistaken and pipeline in OUTDATED_PIPELINES:
        return (SIDE, SIDE)
    return size


class LatentUNetModel(LatentModel):
    """A U-Net over latents, one or two text encoders, an autoencoder.

    Args:
        parts: The pieces; two text encoders make it an SDXL.
        placement: Where and in which type networks compute.

    Attributes:
        text_encoders: In the order in which their states are joined.
    """

    def __init__(self, parts: Parts, placement: Placement) -> None:
        unet = part_of(parts, "unet")
        self.networks = {}
        self._is_xl = unet.config.get("addition_embed_type") == "text_time"
        self._guidance_width = int(unet.config.get("time_cond_proj_dim") or 0)
        self._zero_empty = bool(parts.config.get("force_zeros_for_empty_prompt", self._is_xl))
        self.text_encoders = self._wire_text(parts, placement)
        self.networks["denoiser"] = TorchNetwork.of(unet, call_unet, placement)
        self._autoencoder = Autoencoder(
            part_of(parts, "vae"), self.networks, placement, upcasts=self._is_xl
        )
        self.spec = self._describe(parts)
        self.denoiser = NetworkDenoiser(
            self._predict, noise_schedule(parts.scheduler), self.spec.prediction_type
        )

    def _wire_text(self, parts: Parts, placement: Placement) -> list[TextEncoder]:
        """Return the text encoders in the order their states are joined."""
        if not self._is_xl:
            return [text_encoder(parts, self.networks, placement)]
        return [
            text_encoder(parts, self.networks, placement, suffix=suffix, call=call_penultimate)
            for suffix in ("", "_2")
        ]

    def _describe(self, parts: Parts) -> ModelSpec:
        unet = parts.networks["unet"].config
        scale = self._autoencoder.scale
        levels = len(unet.get("block_out_channels") or (0,) * 4)
        size = default_size(_trained_size(unet, parts.pipeline, 128 if self._is_xl else 64), scale)
        limits = list[str]()
        if "safety_checker" in parts.config:
            limits.append("the pipeline's safety checker is not run; use gates")
        if self._guidance_width:
            limits.append("guidance_scale is an input of the network; there is no negative prompt")
        spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family="sdxl" if self._is_xl else "sd",
            prediction_type=prediction_type(parts.scheduler),
            scheduler_config=dict(parts.scheduler),
            latent_channels=self._autoencoder.channels,
            latent_scale=scale,
            size_multiple=scale,
            min_size_px=scale * 2 ** (levels - 1),
            max_size_px=max(2048, 4 * max(size)),
            takes_guidance=not self._guidance_width,
            takes_negative_prompt=not self._guidance_width,
            takes_distilled_guidance=bool(self._guidance_width),
            token_limit=self.text_encoders[0].tokens.max_length,
            limits=tuple(limits),
            **drawing_defaults(
                parts,
                scheduler="euler",
                denoiser="unet",
                default_size=size,
                default_steps=30,
                default_guidance_scale=5.0 if self._is_xl else 7.5,
            ),
        )
        if self._guidance_width:
            spec = replace(spec, default_guidance_scale=8.5)
        return spec

    def align(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Give prompts that will share a call the chunks that the longest needs."""
        most = max(
            (encoder.count_chunks(prompt) for encoder in self.text_encoders for prompt in prompts),
            default=1,
        )
        return [replace(prompt, num_chunks=most) for prompt in prompts]

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into ``encoder_hidden_states`` and what the U-Net needs besides."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> Conditioning:
        if prompt.class_label is not None:
            raise InvalidRequest(
                f"model {self.spec.name} has no classes", field="latent.class_label"
            )
        embeddings = [encoder.embed(prompt) for encoder in self.text_encoders]
        notes = dict.fromkeys(note for embedding in embeddings for note in embedding.notes)
        hidden = torch.cat([embedding.hidden for embedding in embeddings], dim=-1)
        tensors = {"encoder_hidden_states": hidden}
        if self._is_xl:
            pooled = next(e.pooled for e in reversed(embeddings) if e.pooled is not None)
            if prompt.negative and not prompt.text and self._zero_empty:
                tensors["encoder_hidden_states"] = torch.zeros_like(hidden)
                pooled = torch.zeros_like(pooled)
            width, height = prompt.size
            tensors["text_embeds"] = pooled
            tensors["time_ids"] = torch.tensor([[height, width, 0, 0, height, width]]).float()
        if self._guidance_width:
            scale = prompt.distilled_guidance
            scale = self.spec.default_guidance_scale if scale is None else scale
            tensors["timestep_cond"] = guidance_embedding(scale, self._guidance_width)
        return Conditioning(tensors, notes=tuple(notes))
