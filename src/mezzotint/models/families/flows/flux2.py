"""FLUX.2: two streams, then one, over an autoencoder's patches; a language model reads the prompt.

Klein's is a Qwen3; that of FLUX.2 [dev] a Mistral 3, whose network has the guidance scale for
an input.

Latents are the autoencoder's 2x2 patches, normalised by statistics that it brings. Pictures
of ``image_references`` are further tokens behind the picture's, at a place in time of their
own, as in training.

Dimensions: R rows, C latent channels (128), h and w latent rows and columns, S picture tokens
(h * w), T text tokens.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from mezzotint.models.families.flows.language import call_layers, language_model
from mezzotint.models.families.flows.model import REFERENCE, TEXT_STATES, FlowFamily
from mezzotint.models.parts import Parts

__all__ = ["FLUX2_DEV", "FLUX2_KLEIN", "call_flux2"]

TIME_SCALE = 1000.0  # the network multiplies its timestep by this
REFERENCE_TIME = 10  # places in time between one reference and the next
AXES = 4  # time, row, column, text


def call_flux2(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a Flux2Transformer2DModel with latents (R, C, h, w) and those of references."""
    sample, hidden = inputs["sample"], inputs[TEXT_STATES]
    references = [inputs[name] for name in sorted(inputs) if name.startswith(REFERENCE)]
    pictures = [sample, *references]
    places = [
        _places(picture, REFERENCE_TIME * k if k else 0) for k, picture in enumerate(pictures)
    ]
    text = torch.zeros((hidden.shape[1], AXES), dtype=torch.long, device=hidden.device)
    text[:, -1] = torch.arange(hidden.shape[1], device=hidden.device)
    output = module(
        hidden_states=torch.cat(list(_tokens(pictures)), dim=1),
        timestep=inputs["timestep"] / TIME_SCALE,
        guidance=inputs.get("guidance"),
        encoder_hidden_states=hidden,
        txt_ids=text,
        img_ids=torch.cat(places),
        return_dict=False,
    )
    count = sample.shape[-2] * sample.shape[-1]
    return (output[0][:, :count].transpose(1, 2).reshape(sample.shape),)


def _tokens(pictures: list[Tensor]) -> Iterator[Tensor]:
    """Yield the tokens of each picture: (R, C, h, w) -> (R, S, C)."""
    for picture in pictures:
        yield picture.flatten(2).transpose(1, 2)


def _places(picture: Tensor, time: int) -> Tensor:
    """Return time, row, column and a zero for each token. Shape (S, 4)."""
    rows, columns = picture.shape[-2:]
    y = torch.arange(rows, device=picture.device)[:, None].expand(rows, columns)
    x = torch.arange(columns, device=picture.device)[None].expand(rows, columns)
    return torch.stack([torch.full_like(y, time), y, x, torch.zeros_like(y)], dim=-1).flatten(0, 1)


def _defaults(parts: Parts) -> dict[str, Any]:
    """Tell Klein, which is distilled to 4 steps without guidance, from Klein Base."""
    if not parts.config.get("is_distilled"):
        return {"default_steps": 50, "default_guidance_scale": 4.0}
    return {
        "default_steps": 4,
        "default_guidance_scale": 1.0,
        "takes_guidance": False,
        "takes_negative_prompt": False,
        "limits": ("distilled: guidance_scale and negative_prompt have no effect",),
    }


def _dev_defaults(parts: Parts) -> dict[str, Any]:
    """Return what holds for FLUX.2 [dev], whose guidance is distilled into the network."""
    is_guided = bool(parts.networks["transformer"].config.get("guidance_embeds"))
    limits = ["there is no negative prompt: guidance is distilled into the network"]
    if not is_guided:
        limits.append("guidance_scale has no effect on this model")
    return {
        "default_steps": 50,
        "default_guidance_scale": 4.0 if is_guided else 1.0,
        "takes_guidance": False,
        "takes_negative_prompt": False,
        "takes_distilled_guidance": is_guided,
        "limits": tuple(limits),
    }


FLUX2_DEV = FlowFamily(
    family="flux2-dev",
    call=call_flux2,
    text=language_model("flux2-dev", call_layers(10, 20, 30), is_whole=True),
    defaults=_dev_defaults,
    patch=1,
    reads_padding=True,
    max_references=16,
    scheduler={"spaced_per_step": True, "shift_rule": "flux2"},
)
FLUX2_KLEIN = FlowFamily(
    family="flux2",
    call=call_flux2,
    text=language_model("flux2", call_layers(9, 18, 27), is_whole=True),
    defaults=_defaults,
    patch=1,
    reads_padding=True,
    max_references=16,
    scheduler={"spaced_per_step": True, "shift_rule": "flux2"},
)
