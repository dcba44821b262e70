"""PixArt (Alpha, Sigma): transformers over latents that a masked T5 tells what to draw.

Texts are read as the authors' captions were: in lower case. The large Alpha is told the
picture's size as well.

Dimensions: R rows, C latent channels, h and w latent rows and columns, T text tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.common import (
    default_size,
    drawing_defaults,
    longest_side,
    part_of,
    prediction_type,
    sample_size,
)
from mezzotint.models.families.flows.t5 import T5Reader
from mezzotint.models.families.latent import LatentModel
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.types import Size

__all__ = ["ALPHA_TOKENS", "SIGMA_TOKENS", "PixArtModel", "call_pixart"]

ALPHA_TOKENS, SIGMA_TOKENS = 120, 300
SIDE = 128  # latent rows and columns of the large checkpoints


def call_pixart(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a PixArtTransformer2DModel with latents (R, C, h, w) and named tensors."""
    output = module(
        inputs["sample"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        encoder_attention_mask=inputs["text_mask"],
        timestep=inputs["timestep"],
        added_cond_kwargs={
            "resolution": inputs.get("resolution"),
            "aspect_ratio": inputs.get("aspect_ratio"),
        },
        return_dict=False,
    )
    return (output[0],)


class PixArtModel(LatentModel):
    """A PixArt transformer with a T5.

    Args:
        parts: The pieces.
        placement: Where and in which type networks compute.
    """

    def __init__(self, parts: Parts, placement: Placement) -> None:
        transformer = part_of(parts, "transformer")
        is_alpha = parts.pipeline == "PixArtAlphaPipeline"
        self.networks = {}
        self._text = T5Reader(
            parts,
            self.networks,
            placement,
            window=ALPHA_TOKENS if is_alpha else SIGMA_TOKENS,
            lowers=True,
        )
        denoiser = TorchNetwork.of(transformer, call_pixart, placement)
        denoiser.fixes_sizes = True  # the places of patches are computed for a size
        self.networks["denoiser"] = denoiser
        self._autoencoder = Autoencoder(part_of(parts, "vae"), self.networks, placement)
        scale, sides = self._autoencoder.scale, sample_size(transformer.config, SIDE)
        told = transformer.config.get("use_additional_conditions")
        self._is_told_size = sides[0] == SIDE if told is None else bool(told)
        self._patch = int(transformer.config.get("patch_size", 2))
        self.spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family="pixart",
            prediction_type=prediction_type(parts.scheduler),
            scheduler_config=dict(parts.scheduler),
            latent_channels=self._autoencoder.channels,
            latent_scale=scale,
            size_multiple=self._patch * scale,
            min_size_px=self._patch * scale,
            max_size_px=longest_side(default_size(sides, scale)),
            token_limit=self._text.window,
            **drawing_defaults(
                parts,
                scheduler="dpmpp_2m",
                denoiser="transformer",
                default_size=default_size(sides, scale),
                default_steps=20,
                default_guidance_scale=4.5,
            ),
        )
        self.denoiser = NetworkDenoiser(
            self._predict, noise_schedule(parts.scheduler), self.spec.prediction_type
        )

    def sequence_length(self, size: Size) -> int:
        """Return the number of tokens of a picture."""
        _, rows, columns = self.latent_shape(size)
        return (rows // self._patch) * (columns // self._patch)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into the states of its tokens, their mask and the size."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> Conditioning:
        states = self._text.embed(prompt)
        tensors = {"encoder_hidden_states": states.hidden}
        if states.mask is not None:
            tensors["text_mask"] = states.mask
        if self._is_told_size:
            width, height = prompt.size
            tensors["resolution"] = torch.tensor([[float(height), float(width)]])
            tensors["aspect_ratio"] = torch.tensor([[height / width]])
        return Conditioning(tensors, notes=states.notes)
