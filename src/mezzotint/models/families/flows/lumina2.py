"""Lumina 2: one stream of text and picture tokens, a Gemma 2 that reads the prompt.

Guidance is that of the pipeline: what is guided keeps, for each row of each channel, the
length that the prompt alone gives.

Dimensions: R rows, C latent channels, h and w latent rows and columns, S picture tokens
(h/2 * w/2), T text tokens, H heads, d features of a head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mezzotint.models.families.flows.language import call_layers, language_model
from mezzotint.models.families.flows.model import TEXT_MASK, TEXT_STATES, FlowFamily
from mezzotint.models.families.flows.patches import from_tokens, places_behind, to_tokens
from mezzotint.models.families.flows.rotary import attend, turn, turns_of
from mezzotint.models.parts import Parts

__all__ = ["LUMINA2", "call_lumina2"]

TRAIN_TIMESTEPS = 1000.0


def call_lumina2(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call the layers of a Lumina2Transformer2DModel for rows of one shape.

    The module's own ``forward`` packs each row as tightly as its text allows and fills up to
    the longest of the call, so that a row's arithmetic would depend on its neighbours. Here
    the picture stands first, and what fills a text up is masked behind it; places in the
    sequence are told by rotary positions alone.
    """
    sample, hidden, shown = inputs["sample"], inputs[TEXT_STATES], inputs[TEXT_MASK]
    rows, _, height, width = sample.shape
    time = (TRAIN_TIMESTEPS - inputs["timestep"]) / TRAIN_TIMESTEPS
    steer, text = module.time_caption_embed(sample, time, hidden)

    place = torch.arange(hidden.shape[1], device=hidden.device)
    ids = torch.stack([place, 0 * place, 0 * place], dim=-1)
    text_turns = _turns(module, ids)[None].expand(rows, -1, -1, -1)
    for layer in module.context_refiner:
        text = layer(text, shown, text_turns)

    picture = module.x_embedder(to_tokens(sample))
    count = picture.shape[1]
    turns = _turns(module, places_behind(shown.sum(dim=1), height, width))
    for layer in module.noise_refiner:
        picture = layer(picture, None, turns, steer)

    both, turns = torch.cat([picture, text], dim=1), torch.cat([turns, text_turns], dim=1)
    shown = torch.cat([shown.new_ones(rows, count), shown], dim=1)
    for layer in module.layers:
        both = layer(both, shown, turns, steer)
    output = module.norm_out(both, steer)[:, :count]
    return (-from_tokens(output, height, width),)


def _turns(module: Any, places: Tensor) -> Tensor:
    embedder = module.rope_embedder
    return turns_of(places, theta=float(embedder.theta), widths=tuple(embedder.axes_dim))


class _Attention:
    """What diffusers' Lumina2AttnProcessor2_0 does: several queries share keys and values."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
    ) -> Tensor:
        query = attn.to_q(hidden_states).unflatten(-1, (attn.heads, -1))
        width = query.shape[-1]
        key, value = (
            project(encoder_hidden_states).unflatten(-1, (-1, width))
            for project in (attn.to_k, attn.to_v)
        )
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        if image_rotary_emb is not None:
            query, key = turn(query, image_rotary_emb), turn(key, image_rotary_emb)
        sharing = attn.heads // key.shape[2]
        key, value = (heads.repeat_interleave(sharing, dim=2) for heads in (key, value))
        return attn.to_out[0](attend(query, key, value, attention_mask))


def _use_real_turns(module: Any) -> None:
    """Let every attention of the module take positions as real numbers."""
    for part in (module.noise_refiner, module.context_refiner, module.layers):
        for layer in part:
            layer.attn.set_processor(_Attention())


def _defaults(parts: Parts) -> dict[str, Any]:
    """Return steps and guidance of the card of Lumina-Image-2.0."""
    return {"default_steps": 50, "default_guidance_scale": 4.0}


LUMINA2 = FlowFamily(
    family="lumina2",
    call=call_lumina2,
    prepare=_use_real_turns,
    text=language_model("lumina2", call_layers(-2)),
    defaults=_defaults,
    guidance_norm_block=(1, 1, 0),
)
