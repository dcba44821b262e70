"""Stable Diffusion 3 and 3.5: MM-DiT, flow matching, up to three text encoders.

Dimensions: R rows, C latent channels, h and w latent rows and columns, T tokens,
D hidden width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.common import (
    BLOCK_RESIDUAL,
    block_residuals,
    default_size,
    drawing_defaults,
    part_of,
    sample_size,
    token_width,
)
from mezzotint.models.families.latent import LatentModel
from mezzotint.models.families.text import call_last, call_penultimate, text_encoder
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.types import Size

__all__ = ["SD3Model", "call_mmdit"]

T5_TOKENS = 256


def call_mmdit(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call an SD3Transformer2DModel with named tensors."""
    blocks = len(module.transformer_blocks)
    output = module(
        hidden_states=inputs["sample"],
        timestep=inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        pooled_projections=inputs["pooled_projections"],
        block_controlnet_hidden_states=block_residuals(inputs, BLOCK_RESIDUAL, blocks),
        return_dict=False,
    )
    return (output[0],)


class SD3Model(LatentModel):
    """An MM-DiT over latents with two CLIP encoders and, where it is there, T5.

    Args:
        parts: The pieces; ``text_encoder_3`` may be missing, its states are zeros then.
        placement: Where and in which type networks compute.
    """

    def __init__(self, parts: Parts, placement: Placement) -> None:
        transformer = part_of(parts, "transformer")
        self.networks = {}
        self._clips = [
            text_encoder(
                parts,
                self.networks,
                placement,
                suffix=suffix,
                call=call_penultimate,
                chunked=False,
            )
            for suffix in ("", "_2")
        ]
        self._t5 = (
            text_encoder(
                parts,
                self.networks,
                placement,
                suffix="_3",
                call=call_last,
                chunked=False,
                max_length=T5_TOKENS,
            )
            if "text_encoder_3" in parts.networks
            else None
        )
        self._width = int(transformer.config["joint_attention_dim"])
        self._patch = int(transformer.config.get("patch_size", 2))
        self.networks["denoiser"] = TorchNetwork.of(transformer, call_mmdit, placement)
        self._autoencoder = Autoencoder(part_of(parts, "vae"), self.networks, placement)
        scale = self._autoencoder.scale
        size = default_size(sample_size(transformer.config, 128), scale)
        side = int(transformer.config.get("pos_embed_max_size", 96)) * self._patch * scale
        self.spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family="sd3",
            prediction_type="flow",
            scheduler_config={**parts.scheduler, "spaced_per_step": False},
            latent_channels=self._autoencoder.channels,
            latent_scale=scale,
            size_multiple=scale * self._patch,
            min_size_px=scale * self._patch,
            max_size_px=side,
            token_width=token_width(transformer.config),
            token_limit=T5_TOKENS if self._t5 else self._clips[0].tokens.max_length,
            **drawing_defaults(
                parts,
                scheduler="flow_euler",
                denoiser="transformer",
                default_size=size,
                default_steps=28,
                default_guidance_scale=7.0,
            ),
        )
        self.denoiser = NetworkDenoiser(self._predict, noise_schedule(parts.scheduler), "flow")

    def sequence_length(self, size: Size) -> int:
        """Return the number of patches."""
        _, rows, columns = self.latent_shape(size)
        return (rows // self._patch) * (columns // self._patch)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into joint hidden states and a pooled vector."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> Conditioning:
        clips = [encoder.embed(prompt) for encoder in self._clips]
        hidden = torch.cat([clip.hidden for clip in clips], dim=-1)
        hidden = pad(hidden, (0, self._width - hidden.shape[-1]))
        if self._t5 is None:
            long, notes = torch.zeros(1, T5_TOKENS, self._width), clips[0].notes
        else:
            embedding = self._t5.embed(prompt)
            long, notes = embedding.hidden, embedding.notes
            if clips[0].notes and not notes:
                notes = tuple(f"CLIP read less than T5: {note}" for note in clips[0].notes)
        pooled = torch.cat([clip.pooled for clip in clips if clip.pooled is not None], dim=-1)
        tensors = {
            "encoder_hidden_states": torch.cat([hidden, long], dim=1),
            "pooled_projections": pooled,
        }
        return Conditioning(tensors, notes=notes)
