"""LoRA families: for which kind of model a LoRA was made, told by its header alone.

Every trainer names the layers that it changes in its own way, but no family's layers are
named like another's for long. What is told here comes before weights are read; whether each
layer fits is found out when they are.
"""

import re
from collections.abc import Mapping

from mezzotint.errors import InvalidRequest
from mezzotint.models.adapters.controlnet import denoiser_config
from mezzotint.models.base import Model
from mezzotint.models.parts import SafetensorsHeader

__all__ = ["check_lora", "lora_families", "text_width"]

_FLUX = ("chroma", "flux")
_QWEN = ("qwen-image", "qwen-image-2")
_FLUX2 = ("flux2", "flux2-dev")
_UNETS = {768: ("sd",), 1024: ("sd",), 2048: ("sdxl",)}
"""Families of U-Nets by the width of the text that they listen to, in published checkpoints."""

_NAMES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"joint_blocks_\d", ("sd3",)),
    (r"transformer_blocks_\d+_img_mlp_(proj|gate_layer|gate_up|out)", ("qwen-image-2",)),
    (r"transformer_blocks_\d+_(img|txt)_(mlp|mod)", ("qwen-image",)),
    (r"to_qkv_mlp_proj|double_stream_modulation|single_stream_modulation", _FLUX2),
    (r"distilled_guidance_layer", ("chroma",)),
    (r"single_transformer_blocks_\d+_proj_(mlp|out)", _FLUX),
    (r"double_blocks_\d|single_blocks_\d|single_transformer_blocks_\d", (*_FLUX, *_FLUX2)),
    (
        r"(noise|context)_refiner_\d|(^|_)layers_\d+_(attention|feed_forward)",
        ("z-image", "lumina2"),
    ),
    (r"(down|up|input|output)_blocks_\d|mid_block|middle_block", ("sd", "sdxl")),
    (r"transformer_blocks_\d+_attn1", ("dit", "pixart", "sana")),
    (r"transformer_blocks_\d+_attn2", ("pixart", "sana", "sd3")),
    (r"transformer_blocks_\d+_attn_(add_|to_add_out)", ("sd3", "qwen-image", *_FLUX, *_FLUX2)),
    (r"transformer_blocks_\d+_(attn|ff_context)", ("sd3", *_QWEN, *_FLUX, *_FLUX2)),
)
"""What layers are called, points read as underscores, and the families that call them so. The
first that any layer is called tells."""

_TEXT_KEYS = re.compile(r"attn2_(?:processor_)?to_k(?:_lora)?_(?:lora_A|lora_down|down)")


def lora_families(header: SafetensorsHeader) -> tuple[str, ...]:
    """Return the families whose layers a LoRA names, () if its names tell nothing.

    Args:
        header: Of its file.

    Example:
        >>> names = {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_up.weight": ("F16", (8, 4))}
        >>> lora_families(SafetensorsHeader(tensors=names, metadata={}, data_bytes=64))
        ('sd3',)
    """
    names = [key.replace(".", "_") for key in header.tensors if not _is_text(key)]
    for pattern, families in _NAMES:
        if any(re.search(pattern, name) for name in names):
            return _UNETS.get(text_width(header), families) if "sd" in families else families
    return ()


def check_lora(header: SafetensorsHeader, name: str, model: Model) -> None:
    """Refuse a LoRA whose layers are those of another family, before its weights are read.

    Raises:
        InvalidRequest: Says for which family it is.
    """
    families = lora_families(header)
    if families and model.spec.family not in families:
        kind = "family" if len(families) == 1 else "families"
        raise InvalidRequest(
            f"LoRA {name} does not fit {model.spec.name}: by the names of its layers it is for "
            f"{kind} {' or '.join(families)}, the model is {model.spec.family}",
            field="loras",
            value=name,
        )
    width, wanted = text_width(header), denoiser_config(model).get("cross_attention_dim")
    if width and isinstance(wanted, int) and width != wanted:
        raise InvalidRequest(
            f"LoRA {name} does not fit {model.spec.name}: its cross_attention_dim is {width}, the "
            f"model's is {wanted}",
            field="loras",
            value=name,
        )


def text_width(header: SafetensorsHeader) -> int:
    """Return the numbers of a token that a U-Net's LoRA reads, 0 if it changes no such layer."""
    shapes: Mapping[str, tuple[int, ...]] = {
        key.replace(".", "_"): shape for key, (_, shape) in header.tensors.items()
    }
    found = (s[1] for name, s in shapes.items() if len(s) > 1 and _TEXT_KEYS.search(name))
    return next(found, 0)


def _is_text(key: str) -> bool:
    """Whether a layer is a text encoder's."""
    return key.startswith(("lora_te", "text_encoder"))
