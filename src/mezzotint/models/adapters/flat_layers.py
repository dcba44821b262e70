"""Flat layers: LoRAs of trainers that write a layer's name with underscores alone.

Which dots an underscore stands for, the network's own layers tell. Trainers of Lumina 2 name
the layers of its first publication, where query, key and value are one.
"""

import re
from collections.abc import Sequence

from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.models.adapters.joined_layers import deal_out

__all__ = ["FLAT_FAMILIES", "from_flat"]

FLAT_FAMILIES = ("lumina2", "pixart", "qwen-image-2", "sana")
"""Families whose LoRAs diffusers translates not, or only where every layer has one."""

_FLAT = re.compile(
    r"lora_(?:unet|transformer)_(?P<layer>\w+)\.(?P<kind>lora_down\.weight|lora_up\.weight|alpha)"
)
_AUTHORS = re.compile(
    r"(?:lora_unet_|diffusion_model\.)(?P<part>layers|noise_refiner|context_refiner)"
    r"[._](?P<number>\d+)[._](?P<layer>attention[._](?:qkv|out)|feed_forward[._]w[123]"
    r"|adaLN_modulation[._]1)\.(?P<kind>[\w.]+)"
)
_KINDS = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
_LUMINA = {
    "attention_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attention_out": ("attn.to_out.0",),
    "feed_forward_w1": ("feed_forward.linear_1",),
    "feed_forward_w2": ("feed_forward.linear_2",),
    "feed_forward_w3": ("feed_forward.linear_3",),
    "adaLN_modulation_1": ("norm1.linear",),
}
"""Layers of diffusers by the authors' name; three share what one of the file brings."""


def from_flat(state: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Rename the layers of a file, alpha worked into its matrices.

    Args:
        state: The tensors of a file of any trainer.
        family: One of :data:`FLAT_FAMILIES`; others' files are returned as they are.

    Returns:
        The tensors of peft's layout, layers named with underscores where only the network
        knows better; those of other trainers as they are.

    Raises:
        WeightsError: If a layer has no counterpart.
    """
    if family not in FLAT_FAMILIES:
        return state
    if family == "lumina2" and any(_AUTHORS.fullmatch(key) for key in state):
        return deal_out(state, _authors_layers, _shared_widths)
    if any(_FLAT.fullmatch(key) for key in state):
        return deal_out(state, _flat_layers)
    if family == "qwen-image-2":  # others' files diffusers does translate
        return state
    return {re.sub(r"^diffusion_model\.", "transformer.", key): t for key, t in state.items()}


def _authors_layers(key: str) -> tuple[tuple[str, ...], str]:
    """Return the layers that a tensor of a Lumina 2 file is for, and which of theirs it is."""
    match = _AUTHORS.fullmatch(key)
    kind = _KINDS.get(match["kind"], match["kind"]) if match else ""
    if match is None or kind not in (*_KINDS.values(), "alpha"):
        raise WeightsError(f"no layer of Lumina 2 is known for {key} of the LoRA")
    names = _LUMINA[match["layer"].replace(".", "_")]
    return tuple(f"transformer.{match['part']}.{match['number']}.{name}" for name in names), kind


def _shared_widths(down: Tensor, up: Tensor, count: int) -> Sequence[int]:
    """Return the features of query, key and value: several queries share the latter two."""
    width = down.shape[1]
    rest = up.shape[0] - width
    if rest <= 0 or rest % (count - 1):
        raise WeightsError(
            f"a LoRA of query, key and value together answers {up.shape[0]} features for {width}"
        )
    return [width, *[rest // (count - 1)] * (count - 1)]


def _flat_layers(key: str) -> tuple[tuple[str, ...], str]:
    """Return the layer that a tensor is for, its dots unknown, and which of its it is."""
    match = _FLAT.fullmatch(key)
    if match is None:
        raise WeightsError(f"no layer of the transformer is known for {key} of the LoRA")
    return (f"transformer.{match['layer']}",), match["kind"]
