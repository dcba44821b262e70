"""Joined layers: matrices of a LoRA dealt out to the layers that diffusers makes of them.

Authors publish query, key and value as one layer; diffusers has three, which share what the
LoRA's first matrix answers and each take a part of its second.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mezzotint.errors import WeightsError

__all__ = ["Target", "deal_out"]

Target = Callable[[str], tuple[tuple[str, ...], str]]
"""Told the name of a tensor, answers its layers in diffusers and which of theirs it is:
``lora_down.weight``, ``lora_up.weight`` or ``alpha``."""


def deal_out(
    state: dict[str, Tensor],
    target: Target,
    widths: Callable[[Tensor, Tensor, int], Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Rename the layers of a file, alpha worked into its matrices.

    Args:
        state: The tensors of a file.
        target: What each is for.
        widths: Features of each layer that a pair is for, told down (r, in), up (out, r) and
            the number of layers; None gives each as many.

    Returns:
        The tensors of peft's layout.

    Raises:
        WeightsError: If a layer lacks a matrix, or ``target`` knows none.
    """
    layers: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for key, tensor in state.items():
        names, kind = target(key)
        layers.setdefault(names, {})[kind] = tensor
    found: dict[str, Tensor] = {}
    for names, parts in layers.items():
        if not {"lora_down.weight", "lora_up.weight"} <= parts.keys():
            raise WeightsError(f"a matrix of the LoRA's layer {names[0]} is missing")
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        alpha = parts.get("alpha")
        factor = 1.0 if alpha is None else float(alpha) / down.shape[0]
        count = len(names)
        shares = (
            (up * factor).chunk(count)
            if widths is None or count == 1
            else torch.split(up * factor, list(widths(down, up, count)))
        )
        for name, share in zip(names, shares, strict=True):
            found[f"{name}.lora_A.weight"] = down.clone()
            found[f"{name}.lora_B.weight"] = share.contiguous()
    return found
