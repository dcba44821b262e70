"""Chroma: FLUX's streams with guidance by a second row, no pooled text, and a T5 that is masked.

What fills a text up is hidden from T5. The network is told of it too, the first token that
fills up left out: pairs of tokens that both are text, that one or the picture attract each
other by 1 more than others do, as in diffusers' pipeline.

Dimensions: R rows, C latent channels, h and w latent rows and columns, S picture tokens
(h/2 * w/2), T text tokens, M modulations of all layers, N channels of an embedding.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.models.families.flows.model import TEXT_MASK, TEXT_STATES, FlowFamily
from mezzotint.models.families.flows.t5 import T5Reader
from mezzotint.models.families.flux import pack, unpack
from mezzotint.models.parts import Parts

__all__ = ["CHROMA", "call_chroma"]

PATCH = 2
TIME_SCALE = 1000.0  # the network multiplies its timestep by this
T5_TOKENS = 512


def call_chroma(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a ChromaTransformer2DModel with unpacked latents (R, C, h, w)."""
    sample, hidden = inputs["sample"], inputs[TEXT_STATES]
    height, width = sample.shape[-2:]
    rows, columns = height // PATCH, width // PATCH
    places = torch.zeros(rows, columns, 3, dtype=hidden.dtype, device=hidden.device)
    places[..., 1] += torch.arange(rows, device=hidden.device)[:, None]
    places[..., 2] += torch.arange(columns, device=hidden.device)[None]
    tokens = pack(sample)
    shown = inputs[TEXT_MASK].to(sample.dtype)
    output = module(
        hidden_states=tokens,
        timestep=inputs["timestep"] / TIME_SCALE,
        encoder_hidden_states=hidden,
        txt_ids=torch.zeros(hidden.shape[1], 3, dtype=hidden.dtype, device=hidden.device),
        img_ids=places.reshape(-1, 3),
        attention_mask=torch.cat([shown, torch.ones_like(tokens[..., 0])], dim=1),
        return_dict=False,
    )
    return (unpack(output[0], height, width),)


class _Modulations(nn.Module):
    """What diffusers' ChromaCombinedTimestepTextProjEmbeddings answers, for any number of rows.

    That one makes the embedding of no guidance for as many rows as were there when it was
    exported.
    """

    guidance: Tensor
    places: Tensor

    def __init__(self, embedder: Any) -> None:
        super().__init__()
        self.time_proj = embedder.time_proj
        self.register_buffer("guidance", embedder.guidance_proj(torch.tensor([0])), False)
        self.register_buffer("places", embedder.mod_proj[None], False)

    def forward(self, timestep: Tensor) -> Tensor:
        """Return time, guidance and place of each modulation. Shape (R, M, 4 N)."""
        time = self.time_proj(timestep).to(timestep.dtype)
        guidance = torch.zeros_like(time) + self.guidance.to(time.device, time.dtype)
        places = self.places.to(time.device, time.dtype)
        both = torch.cat([time, guidance], dim=1)[:, None] + 0 * places[..., :1]
        return torch.cat([both, places + 0 * both[..., :1]], dim=-1)


def _use_own_modulations(module: Any) -> None:
    module.time_text_embed = _Modulations(module.time_text_embed)


def _defaults(parts: Parts) -> dict[str, Any]:
    """Return steps and guidance of Chroma1-HD's card."""
    return {"default_steps": 40, "default_guidance_scale": 3.0}


CHROMA = FlowFamily(
    family="chroma",
    call=call_chroma,
    prepare=_use_own_modulations,
    text=partial(T5Reader, window=T5_TOKENS, shown_filling=1),
    defaults=_defaults,
    reads_padding=True,
)
