"""Z-Image: one stream of picture and text tokens, a Qwen3 that reads the prompt.

The network fills both streams up to multiples of 32 with tokens that it has learnt, which
take part; what fills a text up beyond that is masked.

Dimensions: R rows, C latent channels, h and w latent rows and columns, S picture tokens
(h/2 * w/2), T text tokens, F features of the network.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mezzotint.models.families.flows.language import call_layers, language_model
from mezzotint.models.families.flows.model import TEXT_MASK, TEXT_STATES, FlowFamily
from mezzotint.models.families.flows.patches import PATCH, from_tokens, places_behind, to_tokens
from mezzotint.models.families.flows.rotary import attend, turn, turns_of
from mezzotint.models.parts import Parts

__all__ = ["Z_IMAGE", "call_z_image", "rounded_length"]

MULTIPLE = 32  # tokens; SEQ_MULTI_OF of diffusers' module
KIND = f"{PATCH}-1"  # which of the network's embedders: patches of 2 x 2 in 1 frame
TRAIN_TIMESTEPS = 1000.0
TURBO_SHIFT = 3.0  # Z-Image-Turbo's scheduler; that of Z-Image has 6


def call_z_image(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call the layers of a ZImageTransformer2DModel for rows of one shape.

    The module's own ``forward`` takes lists and fills each call up to its longest row, so
    that a row's arithmetic would depend on its neighbours.
    """
    sample, hidden, mask = inputs["sample"], inputs[TEXT_STATES], inputs[TEXT_MASK]
    rows, _, height, width = sample.shape
    time = (TRAIN_TIMESTEPS - inputs["timestep"]) / TRAIN_TIMESTEPS
    steer = module.t_embedder(time * module.t_scale).type_as(sample)

    length = rounded_length(mask)
    place = torch.arange(hidden.shape[1], device=hidden.device)
    text = torch.where(mask[..., None], module.cap_embedder(hidden), module.cap_pad_token)
    shown = place < length[:, None]
    ids = torch.stack([place + 1, 0 * place, 0 * place], dim=-1)
    text_turns = _turns(module, ids)[None].expand(rows, -1, -1, -1)
    for layer in module.context_refiner:
        text = layer(text, shown, text_turns)

    picture = module.all_x_embedder[KIND](to_tokens(sample))
    count = picture.shape[1]
    filling = -count % MULTIPLE
    picture = torch.cat([picture, module.x_pad_token.expand(rows, filling, -1)], dim=1)
    turns = _picture_turns(module, places_behind(length + 1, height, width), filling)
    for layer in module.noise_refiner:
        picture = layer(picture, None, turns, steer)

    both, turns = torch.cat([picture, text], dim=1), torch.cat([turns, text_turns], dim=1)
    shown = torch.cat([shown.new_ones(rows, count + filling), shown], dim=1)
    for layer in module.layers:
        both = layer(both, shown, turns, steer)
    output = module.all_final_layer[KIND](both, c=steer)[:, :count]
    return (-from_tokens(output, height, width),)


def rounded_length(mask: Tensor) -> Tensor:
    """Round the tokens of each text up to what the network was trained with.

    By counting: whole numbers that are divided are rounded, not floored, by OpenVINO.

    Args:
        mask: Shape (R, T), bool.

    Returns:
        Shape (R,), a multiple of :data:`MULTIPLE`.
    """
    starts = torch.arange(0, mask.shape[1], MULTIPLE, device=mask.device)
    return (starts < mask.sum(dim=1, keepdim=True)).sum(dim=1) * MULTIPLE


def _picture_turns(module: Any, places: Tensor, filling: int) -> Tensor:
    """Return the rotary positions of a picture's tokens and of those that fill them up."""
    filled = places.new_zeros(places.shape[0], filling, 3)  # a tracer takes len() for a constant
    return _turns(module, torch.cat([places, filled], dim=1))


def _turns(module: Any, places: Tensor) -> Tensor:
    return turns_of(places, theta=module.rope_theta, widths=module.axes_dims)


def _use_real_turns(module: Any) -> None:
    """Let every attention of the module take positions as real numbers."""
    for part in (module.noise_refiner, module.context_refiner, module.layers):
        for layer in part:
            layer.attention.set_processor(_Attention())


class _Attention:
    """What diffusers' ZSingleStreamAttnProcessor does."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        heads = [
            project(hidden_states).unflatten(-1, (attn.heads, -1))
            for project in (attn.to_q, attn.to_k, attn.to_v)
        ]
        query = heads[0] if attn.norm_q is None else attn.norm_q(heads[0])
        key = heads[1] if attn.norm_k is None else attn.norm_k(heads[1])
        if freqs_cis is not None:
            query, key = turn(query, freqs_cis), turn(key, freqs_cis)
        return attn.to_out[0](attend(query, key, heads[2], attention_mask))


def _defaults(parts: Parts) -> dict[str, Any]:
    """Tell Z-Image from Z-Image-Turbo, which is distilled to 8 steps without guidance."""
    is_turbo = parts.scheduler.get("shift") == TURBO_SHIFT
    return {
        "default_steps": 8 if is_turbo else 50,
        "default_guidance_scale": 1.0 if is_turbo else 5.0,
        "limits": (
            "guidance_scale is counted as everywhere here, 1 is off: one more than in "
            "diffusers' ZImagePipeline",
        ),
    }


Z_IMAGE = FlowFamily(
    family="z-image",
    call=call_z_image,
    prepare=_use_real_turns,
    text=language_model("z-image", call_layers(-2)),
    defaults=_defaults,
)
