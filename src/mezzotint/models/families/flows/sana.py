"""Sana: linear attention over 32 times smaller latents, a Gemma 2 that reads the prompt.

The prompt follows an instruction that asks the Gemma to picture more than it says; of the
instruction the network sees the first token alone. What fills a text up is masked.

Dimensions: R rows, C latent channels, h and w latent rows and columns, T text tokens.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.models.families.common import default_size, longest_side, part_of, sample_size
from mezzotint.models.families.flows.language import call_layers, language_model
from mezzotint.models.families.flows.model import TEXT_MASK, TEXT_STATES, FlowFamily
from mezzotint.models.parts import Parts

__all__ = ["SANA", "call_sana"]


def call_sana(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a SanaTransformer2DModel with latents (R, C, h, w) and named tensors."""
    output = module(
        inputs["sample"],
        encoder_hidden_states=inputs[TEXT_STATES],
        encoder_attention_mask=inputs[TEXT_MASK],
        timestep=inputs["timestep"] * module.config.timestep_scale,
        return_dict=False,
    )
    return (output[0],)


def _defaults(parts: Parts) -> dict[str, Any]:
    """Return steps, guidance and sizes of a checkpoint.

    Raises:
        WeightsError: If it is a Sana Sprint, whose steps are those of a consistency model.
    """
    config = part_of(parts, "transformer").config
    if config.get("guidance_embeds"):
        raise WeightsError(
            f"{parts.name} is a Sana Sprint (its transformer has guidance_embeds), which a "
            f"{parts.pipeline} does not draw; take the folder of its SanaSprintPipeline"
        )
    levels = part_of(parts, "vae").config["encoder_block_out_channels"]
    size = default_size(sample_size(config, 32), 2 ** (len(levels) - 1))
    return {
        "default_steps": 20,
        "default_guidance_scale": 4.5,
        "default_size": size,
        "max_size_px": longest_side(size),
    }


SANA = FlowFamily(
    family="sana",
    call=call_sana,
    text=language_model("sana", call_layers(-1)),
    defaults=_defaults,
    patch=1,
    scheduler={"spaced_per_step": False},  # its pipeline leaves the levels to the scheduler
)
