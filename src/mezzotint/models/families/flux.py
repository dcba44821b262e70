"""FLUX: flow matching over packed latents, guidance as an input of the network.

Outside, latents have the shape of any other model; 2x2 patches are packed into
tokens at the network's door.

Dimensions: R rows, C latent channels, h and w latent rows and columns, S image
tokens (h/2 * w/2), T text tokens, D hidden width, P pooled width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.common import (
    BLOCK_RESIDUAL,
    SINGLE_RESIDUAL,
    block_residuals,
    drawing_defaults,
    part_of,
    token_width,
)
from mezzotint.models.families.latent import LatentModel
from mezzotint.models.families.text import call_last, call_pooled, text_encoder
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.types import Size

__all__ = ["FluxModel", "call_flux", "pack", "packed_inputs", "unpack"]

T5_TOKENS = 512
DEFAULT_SIDE_PX = 1024
TIME_SCALE = 1000.0  # the network multiplies its timestep by this


def pack(latents: Tensor) -> Tensor:
    """Put 2x2 patches into tokens: (R, C, h, w) -> (R, h/2 * w/2, 4 C)."""
    rows, channels, height, width = latents.shape
    patches = latents.reshape(rows, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo :func:`pack` for ``height`` x ``width`` latents."""
    rows, channels = tokens.shape[0], tokens.shape[2] // 4
    patches = tokens.reshape(rows, height // 2, width // 2, channels, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(rows, channels, height, width)


def call_flux(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a FluxTransformer2DModel with unpacked latents (R, C, h, w) and named tensors."""
    doubles, singles = len(module.transformer_blocks), len(module.single_transformer_blocks)
    output = module(
        **packed_inputs(inputs),
        guidance=inputs.get("guidance"),
        controlnet_block_samples=block_residuals(inputs, BLOCK_RESIDUAL, doubles),
        controlnet_single_block_samples=block_residuals(inputs, SINGLE_RESIDUAL, singles),
        return_dict=False,
    )
    return (unpack(output[0], *inputs["sample"].shape[-2:]),)


def packed_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what a FLUX network and its ControlNets are both called with."""
    sample = inputs["sample"]
    height, width = sample.shape[-2:]
    hidden = inputs["encoder_hidden_states"]
    positions = torch.zeros(height // 2, width // 2, 3, dtype=hidden.dtype, device=hidden.device)
    positions[..., 1] += torch.arange(height // 2, device=hidden.device)[:, None]
    positions[..., 2] += torch.arange(width // 2, device=hidden.device)[None]
    return {
        "hidden_states": pack(sample),
        "timestep": inputs["timestep"] / TIME_SCALE,
        "pooled_projections": inputs["pooled_projections"],
        "encoder_hidden_states": hidden,
        "txt_ids": torch.zeros(hidden.shape[1], 3, dtype=hidden.dtype, device=hidden.device),
        "img_ids": positions.reshape(-1, 3),
    }


class FluxModel(LatentModel):
    """A FLUX transformer with CLIP (pooled) and T5 (tokens).

    Args:
        parts: The pieces.
        placement: Where and in which type networks compute.
    """

    def __init__(self, parts: Parts, placement: Placement) -> None:
        transformer = part_of(parts, "transformer")
        self.networks = {}
        self._clip = text_encoder(parts, self.networks, placement, call=call_pooled, chunked=False)
        self._t5 = text_encoder(
            parts,
            self.networks,
            placement,
            suffix="_2",
            call=call_last,
            chunked=False,
            max_length=T5_TOKENS,
        )
        self._is_guided = bool(transformer.config.get("guidance_embeds"))
        self.networks["denoiser"] = TorchNetwork.of(transformer, call_flux, placement)
        self._autoencoder = Autoencoder(part_of(parts, "vae"), self.networks, placement)
        channels, scale = self._autoencoder.channels, self._autoencoder.scale
        limits = ["there is no negative prompt: guidance is distilled into the network"]
        if not self._is_guided:
            limits.append("guidance_scale has no effect on this model")
        self.spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family="flux",
            prediction_type="flow",
            scheduler_config={**parts.scheduler, "spaced_per_step": True},
            latent_channels=channels,
            latent_scale=scale,
            size_multiple=2 * scale,
            min_size_px=2 * scale,
            takes_guidance=False,
            takes_negative_prompt=False,
            takes_distilled_guidance=self._is_guided,
            token_width=token_width(transformer.config),
            token_limit=self._t5.tokens.max_length,
            limits=tuple(limits),
            **drawing_defaults(
                parts,
                scheduler="flow_euler",
                denoiser="transformer",
                default_size=Size(DEFAULT_SIDE_PX // 8 * scale, DEFAULT_SIDE_PX // 8 * scale),
                default_steps=28 if self._is_guided else 4,
                default_guidance_scale=3.5 if self._is_guided else 1.0,
            ),
        )
        self.denoiser = NetworkDenoiser(self._predict, noise_schedule(parts.scheduler), "flow")

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return (C, h, w), both even."""
        scale = self.spec.latent_scale
        return (
            self.spec.latent_channels,
            2 * (size.height // (2 * scale)),
            2 * (size.width // (2 * scale)),
        )

    def sequence_length(self, size: Size) -> int:
        """Return the number of packed tokens."""
        _, rows, columns = self.latent_shape(size)
        return (rows // 2) * (columns // 2)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into T5 states, CLIP's pooled vector and the guidance input."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> Conditioning:
        clip, t5 = self._clip.embed(prompt), self._t5.embed(prompt)
        tensors = {"encoder_hidden_states": t5.hidden}
        if clip.pooled is not None:
            tensors["pooled_projections"] = clip.pooled
        if self._is_guided:
            scale = prompt.distilled_guidance
            scale = self.spec.default_guidance_scale if scale is None else scale
            tensors["guidance"] = torch.tensor([float(scale)])
        return Conditioning(tensors, notes=t5.notes)
