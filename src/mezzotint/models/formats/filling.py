"""Filling: an empty network of a configuration, and the weights that go into it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import WeightsError
from mezzotint.models.backends.packed import Packed, pack_linear
from mezzotint.models.exported import exported_class
from mezzotint.models.quiet_loading import sole_building

__all__ = ["empty_network", "fill"]


def empty_network(class_name: str, config: Mapping[str, Any], *, where: object) -> nn.Module:
    """Build a network whose weights are not in memory yet.

    Args:
        class_name: One of diffusers' classes, or a CLIP text model of transformers.
        config: Its configuration.
        where: What names it, for messages.
    """
    import transformers
    from accelerate import init_empty_weights

    with sole_building(), init_empty_weights(include_buffers=False):
        if class_name.startswith("CLIP"):
            return exported_class("transformers", class_name, where=where)(
                transformers.CLIPTextConfig(**config)
            )
        cls = exported_class("diffusers", class_name, where=where)
        return cls.from_config(dict(config), trust_remote_code=False)


def fill(
    module: nn.Module,
    weights: Mapping[str, Tensor | Packed],
    dtype: torch.dtype,
    *,
    where: object,
) -> nn.Module:
    """Put weights into a network, in place; what the network has no place for is left out.

    Args:
        module: An empty network.
        weights: By the module's own names. Packed ones stay so in linear layers.
        dtype: What it computes in.
        where: The file or folder, for messages.

    Returns:
        The same module.

    Raises:
        WeightsError: If a weight is missing, or has another shape than the network.
    """
    wanted, name = module.state_dict(), type(module).__name__
    if missing := sorted(set(wanted) - set(weights)):
        raise WeightsError(f"{where}: {name} lacks {missing[0]} ({len(missing)} missing)")
    plain: dict[str, Tensor] = {}
    for place, tensor in wanted.items():
        given = weights[place]
        if tuple(given.shape) != tuple(tensor.shape):
            raise WeightsError(
                f"{where}: {name} {place} has shape {tuple(given.shape)}, "
                f"expected {tuple(tensor.shape)}"
            )
        owner, _, leaf = place.rpartition(".")
        layer = module.get_submodule(owner)
        if isinstance(given, Packed) and leaf == "weight" and type(layer) is nn.Linear:
            pack_linear(layer, given, dtype)
        else:
            plain[place] = given.numbers(dtype) if isinstance(given, Packed) else given.to(dtype)
    module.load_state_dict(plain, assign=True, strict=False)
    return module
