"""SD3 layers: LoRAs of kohya's trainer for Stable Diffusion 3, named as diffusers names layers.

They name the layers of the first publication, where query, key and value are one; diffusers
translates those of other families, and not these.
"""

import re

from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.models.adapters.joined_layers import deal_out

__all__ = ["from_kohya"]

_BLOCK = re.compile(
    r"lora_unet_joint_blocks_(\d+)_(x|context)_block_(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)"
)
_TEXT = re.compile(
    r"lora_te([12])_text_model_encoder_layers_(\d+)_(self_attn|mlp)_(\w+)"
    r"\.(lora_down\.weight|lora_up\.weight|alpha)"
)
_LAYERS = {
    ("x", "attn_qkv"): ("attn.to_q", "attn.to_k", "attn.to_v"),
    ("x", "attn2_qkv"): ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    ("context", "attn_qkv"): ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    ("x", "attn_proj"): ("attn.to_out.0",),
    ("x", "attn2_proj"): ("attn2.to_out.0",),
    ("context", "attn_proj"): ("attn.to_add_out",),
    ("x", "mlp_fc1"): ("ff.net.0.proj",),
    ("x", "mlp_fc2"): ("ff.net.2",),
    ("context", "mlp_fc1"): ("ff_context.net.0.proj",),
    ("context", "mlp_fc2"): ("ff_context.net.2",),
    ("x", "adaLN_modulation_1"): ("norm1.linear",),
}
"""Layers of diffusers by stream and name; several share what one of the file brings."""


def from_kohya(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the layers of a file, alpha worked into its matrices.

    Args:
        state: The tensors of a file of any trainer.

    Returns:
        The tensors of peft's layout; those of other trainers as they are.

    Raises:
        WeightsError: If a layer of kohya's has no counterpart.
    """
    if not any(key.startswith("lora_unet_joint_blocks_") for key in state):
        return state
    return deal_out(state, _layers_of)


def _layers_of(key: str) -> tuple[tuple[str, ...], str]:
    """Return the layers that a tensor of the file is for, and which of theirs it is."""
    if block := _BLOCK.fullmatch(key):
        number, stream, name, kind = block.groups()
        known = _LAYERS.get((stream, name))
        if known is not None:
            return tuple(f"transformer.transformer_blocks.{number}.{n}" for n in known), kind
    if text := _TEXT.fullmatch(key):
        encoder, number, part, name, kind = text.groups()
        role = "text_encoder" if encoder == "1" else "text_encoder_2"
        return (f"{role}.text_model.encoder.layers.{number}.{part}.{name}",), kind
    raise WeightsError(f"no layer of Stable Diffusion 3 is known for {key} of the LoRA")
