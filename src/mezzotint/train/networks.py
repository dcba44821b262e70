"""Networks: built from the configuration and the shape of the data.

Pictures and fields use the diffusers networks, so that a run folder opens
anywhere; points and series use :mod:`mezzotint.models.families.array_networks`.
"""

import contextlib
import math
from collections.abc import Generator
from typing import Any

import torch
from torch import nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.array_networks import PointNetwork, SeriesUNet
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.config.model import NetworkConfig

__all__ = ["build_network", "network_kind", "seeded"]

_FITS = {
    "points": ("mlp",),
    "series": ("unet1d",),
    "fields": ("unet2d", "dit"),
    "pixels": ("unet2d", "unet2d_condition", "dit"),
    "latents": ("unet2d", "unet2d_condition", "dit"),
}


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Generator[None]:
    """Lend the state of ``generator`` to layers that only know the global stream.

    Weight initialisation and dropout cannot be given a generator. The global
    stream is what it was afterwards, so nothing outside notices.
    """
    kept = torch.get_rng_state()
    torch.set_rng_state(generator.get_state())
    try:
        yield
    finally:
        torch.set_rng_state(kept)


def network_kind(config: TrainConfig, data: str) -> str:
    """Choose the network, or check the one that is asked for.

    Raises:
        InvalidRequest: If it does not fit the data or the conditioning.
    """
    kind = config.network.kind
    if kind == "auto":
        kind = "unet2d_condition" if config.conditioning.kind == "text" else _FITS[data][0]
    if kind not in _FITS[data]:
        raise InvalidRequest(
            f"network.kind for {data} must be one of {', '.join(_FITS[data])}, got {kind!r}",
            field="network.kind",
            value=kind,
            allowed=", ".join(_FITS[data]),
        )
    if (kind == "unet2d_condition") != (config.conditioning.kind == "text"):
        raise InvalidRequest(
            'conditioning.kind "text" and network.kind "unet2d_condition" belong together, got '
            f"{config.conditioning.kind!r} and {kind!r}",
            field="network.kind",
            value=kind,
        )
    return kind


def check_sides(network: NetworkConfig, kind: str, shape: tuple[int, ...]) -> None:
    """Refuse a size that the network cannot halve or cut into patches.

    Raises:
        InvalidRequest: If a side does not divide; names the next sides that do.
    """
    if kind == "mlp":
        return
    multiple = network.patch if kind == "dit" else 2 ** (len(network.channels) - 1)
    if kind == "unet1d":
        multiple *= network.fold
    name = {"unet1d": "the length of the series"}.get(kind, "data.resolution")
    for side in shape[1:]:
        if side % multiple:
            down = side - side % multiple
            near = f"{down} and {down + multiple}" if down else f"{multiple}"
            raise InvalidRequest(
                f"{name} must be a multiple of {multiple} for this network, got {side}; nearest "
                f"are {near}",
                field="data.resolution",
                value=side,
            )
    if kind == "dit" and shape[1] != shape[2]:
        raise InvalidRequest(
            f'network.kind "dit" needs square samples, got {shape[2]}x{shape[1]}',
            field="network.kind",
        )


def build_network(
    config: TrainConfig,
    kind: str,
    shape: tuple[int, ...],
    *,
    num_classes: int = 0,
    text_width: int = 0,
) -> nn.Module:
    """Build the network at random weights; call it inside :func:`seeded`.

    Args:
        config: The run.
        kind: From :func:`network_kind`.
        shape: Shape of one sample, channels first.
        num_classes: Classes; one more row is added for "no class".
        text_width: Width of the text embeddings.
    """
    network = config.network
    check_sides(network, kind, shape)
    rows = num_classes + 1 if num_classes else 0
    if kind == "mlp":
        return PointNetwork(shape[0], network.hidden, network.depth, rows, network.dropout)
    if kind == "unet1d":
        return SeriesUNet(
            shape[0],
            network.channels,
            network.layers,
            attention=network.attention,
            heads=network.heads,
            num_classes=rows,
            dropout=network.dropout,
            fold=network.fold,
            gated=network.gated,
        )
    if kind == "dit":
        return _build_dit(network, shape, num_classes)
    return _build_unet(network, kind, shape, rows, text_width)


def _build_dit(network: NetworkConfig, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Build a transformer over patches (arXiv:2212.09748)."""
    import diffusers

    kinds: Any = diffusers  # loads its names when they are asked for
    model = kinds.DiTTransformer2DModel(
        num_attention_heads=network.heads,
        attention_head_dim=network.hidden // network.heads,
        in_channels=shape[0],
        out_channels=shape[0],
        num_layers=network.depth,
        dropout=network.dropout,
        sample_size=shape[1],
        patch_size=network.patch,
        num_embeds_ada_norm=max(num_classes, 1),
        norm_num_groups=1,
    )
    for module in model.modules():  # labels are dropped by the trainer, from its own generator
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    return model


def _build_unet(
    network: NetworkConfig, kind: str, shape: tuple[int, ...], rows: int, text_width: int
) -> nn.Module:
    """Build a U-Net for pictures, fields or latents."""
    import diffusers

    kinds: Any = diffusers  # loads its names when they are asked for
    widths = tuple(network.channels)
    common: dict[str, Any] = {
        "sample_size": shape[1] if shape[1] == shape[2] else (shape[1], shape[2]),
        "in_channels": shape[0],
        "out_channels": shape[0],
        "block_out_channels": widths,
        "layers_per_block": network.layers,
        "norm_num_groups": min(32, math.gcd(*widths)),
        "dropout": network.dropout,
    }
    levels = range(len(widths))
    if kind == "unet2d_condition":
        plain, attended = "DownBlock2D", "CrossAttnDownBlock2D"
        return kinds.UNet2DConditionModel(
            **common,
            down_block_types=tuple(attended if k in network.attention else plain for k in levels),
            up_block_types=tuple(
                ("CrossAttnUpBlock2D" if k in network.attention else "UpBlock2D")
                for k in reversed(levels)
            ),
            cross_attention_dim=text_width,
            attention_head_dim=network.heads,
        )
    return kinds.UNet2DModel(
        **common,
        down_block_types=tuple(
            "AttnDownBlock2D" if k in network.attention else "DownBlock2D" for k in levels
        ),
        up_block_types=tuple(
            "AttnUpBlock2D" if k in network.attention else "UpBlock2D" for k in reversed(levels)
        ),
        attention_head_dim=max(4, widths[-1] // network.heads),
        add_attention=bool(network.attention),
        num_class_embeds=rows or None,
    )
