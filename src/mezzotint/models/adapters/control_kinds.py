"""Control kinds: what each class of ControlNet reads, what it answers, and where that is added.

A U-Net takes residuals at every level. A transformer takes them behind its blocks; a
ControlNet has fewer blocks than it, so each of its answers goes behind several. Where a
transformer's ControlNet reads a picture, it reads the latents of that picture: the mean of
what the autoencoder says, so that a control never depends on chance.

Dimensions: R rows, C latent channels, h and w latent rows and columns, H and W rows and columns
of pixels, S picture tokens, D hidden width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mezzotint.models.base import Model
from mezzotint.models.families.common import BLOCK_RESIDUAL, SINGLE_RESIDUAL
from mezzotint.models.families.flows.model import TEXT_MASK, TEXT_STATES
from mezzotint.models.families.flows.qwen_image import (
    PATCH,
    use_real_turns,
)
from mezzotint.models.families.flows.qwen_image import TIME_SCALE as QWEN_TIME_SCALE
from mezzotint.models.families.flux import pack, packed_inputs
from mezzotint.models.families.sd import MID_RESIDUAL, RESIDUAL
from mezzotint.models.networks import Call
from mezzotint.types import Size

__all__ = [
    "CONTROL_KINDS",
    "UNET_RESIDUALS",
    "ControlKind",
    "Residual",
    "call_controlnet",
    "residual_shapes",
]

Config = Mapping[str, Any]


class Residual(NamedTuple):
    """Something that is added inside the denoiser.

    Args:
        names: Inputs of the denoiser that it is; several where one goes to several places.
        shape: Of one row.
        sources: For each ControlNet which of its answers is a part of it, None for none.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    sources: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlKind:
    """One class of ControlNet.

    Args:
        families: Families that it steers.
        call: Calls it with named tensors; ``image`` is the control picture, as
            ``reads_latents`` says. Answers one tensor after the other.
        passed: Inputs of the denoiser that it reads too.
        shared: Settings in which it must be like the denoiser.
        residuals: ``(ControlNets, denoiser, h, w)`` to what is added, from configurations.
        refuse: Why a configuration cannot be used here, or "".
        prepare: Changes its layers once, when it is built.
        reads_latents: Whether it reads the latents of its picture, and not its pixels.
        prompt_only: Tensors of the prompt that it reads for the unconditional half too, as the
            pipeline of the family does.
        darkest: Of the pixels that it reads, whose brightest are 1.
        modes: What a union of its class tells apart where its file does not say, 0 for no union.
    """

    families: tuple[str, ...]
    call: Call
    passed: tuple[str, ...]
    shared: tuple[str, ...]
    residuals: Callable[[Sequence[Config], Config, int, int], list[Residual]]
    refuse: Callable[[Config], str] = lambda _: ""
    prepare: Callable[[nn.Module], Any] | None = None
    reads_latents: Callable[[Config], bool] = lambda _: True
    prompt_only: tuple[str, ...] = ()
    darkest: float = -1.0
    modes: int = 0

    def encode(self, config: Config, model: Model, picture: Tensor | None, size: Size) -> Tensor:
        """Turn a prepared picture into what the ControlNet reads.

        Args:
            config: Of the ControlNet.
            model: Whose pictures it steers.
            picture: Shape (1, 3, H, W), in [0, 1]; None for zeros of the right shape.
            size: Of the picture.

        Returns:
            Shape (1, C, h, w) where it reads latents, else (1, 3, H, W).
        """
        if not self.reads_latents(config):
            if picture is None:
                return torch.zeros((1, 3, size.height, size.width))
            return picture * (1 - self.darkest) + self.darkest
        if picture is None:
            return torch.zeros((1, *model.latent_shape(size)))
        latents = model.encode_image(picture * 2 - 1)
        if config.get("force_zeros_for_pooled_projection", False):
            latents = latents + model.latent_offset  # they were trained without the shift
        return latents


def call_controlnet(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a ControlNetModel with named tensors; ``image`` is the control picture.

    Returns:
        The residuals of the down blocks in order, then that of the middle block.
    """
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    downs, middle = module(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        controlnet_cond=inputs["image"],
        conditioning_scale=1.0,
        added_cond_kwargs=added or None,
        return_dict=False,
    )
    return (*downs, middle)


def _call_union(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a ControlNetUnionModel, where every row follows a mode of its own. (R, 1)."""
    mode = inputs["mode"].flatten().long()
    kinds = torch.arange(module.config.num_control_type, device=mode.device)
    added = {name: inputs[name] for name in ("text_embeds", "time_ids") if name in inputs}
    downs, middle = module(
        inputs["sample"],
        inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"],
        controlnet_cond=[inputs["image"]],
        control_type=(mode[:, None] == kinds).to(inputs["sample"].dtype),
        control_type_idx=[mode],
        conditioning_scale=1.0,
        added_cond_kwargs=added or None,
        return_dict=False,
    )
    return (*downs, middle)


class _OwnRow(nn.Module):
    """Attention that reaches from row to row, as if each row were a call of its own.

    A ControlNetUnionModel hands its layers (R, T, D) where they attend over the first
    dimension, so that pictures of one call would change each other. Diffusers' pipeline calls
    it with rows that are alike there, so that what is attended to is the row itself: its value.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, query: Tensor, *_: Tensor, **__: Any) -> tuple[Tensor, None]:
        """Return what a row alone answers. (R, T, D)."""
        width = query.shape[-1]
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        value = nn.functional.linear(query, weight[2 * width :], bias[2 * width :])
        return self.attention.out_proj(value), None


def _keep_rows_apart(module: Any) -> None:
    for layer in module.transformer_layes:  # diffusers' spelling
        layer.attn = _OwnRow(layer.attn)


def residual_shapes(config: Config, rows: int, columns: int) -> tuple[tuple[int, int, int], ...]:
    """Return the shapes (C, h, w) of a U-Net's down residuals, then that of its middle.

    Args:
        config: The U-Net's configuration.
        rows: Latent rows.
        columns: Latent columns.
    """
    widths = config["block_out_channels"]
    layers = config.get("layers_per_block", 2)
    is_each = isinstance(layers, list | tuple)
    counts: list[Any] = list(cast("Sequence[Any]", layers)) if is_each else [layers] * len(widths)
    shapes = [(int(widths[0]), rows, columns)]
    for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
        shapes += [(int(width), rows, columns)] * int(count)
        if level < len(widths) - 1:
            rows, columns = -(-rows // 2), -(-columns // 2)
            shapes.append((int(width), rows, columns))
    return (*shapes, (int(widths[-1]), rows, columns))


def _of_unet(nets: Sequence[Config], unet: Config, rows: int, columns: int) -> list[Residual]:
    shapes = residual_shapes(unet, rows, columns)
    names = [*(f"{RESIDUAL}{k:02d}" for k in range(len(shapes) - 1)), MID_RESIDUAL]
    return [
        Residual((name,), shape, (k,) * len(nets))
        for k, (name, shape) in enumerate(zip(names, shapes, strict=True))
    ]


def _refuse_unet(config: Config) -> str:
    pools = config.get("global_pool_conditions")
    return "pools its answers (global_pool_conditions), which is not offered" if pools else ""


def _call_mmdit(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call an SD3ControlNetModel; ``sample`` are tokens where it has no positions of its own."""
    pooled = inputs["pooled_projections"]
    if module.config.force_zeros_for_pooled_projection:
        pooled = torch.zeros_like(pooled)
    reads_text = module.config.joint_attention_dim is not None
    (answers,) = module(
        hidden_states=inputs["sample"],
        timestep=inputs["timestep"],
        encoder_hidden_states=inputs["encoder_hidden_states"] if reads_text else None,
        pooled_projections=pooled,
        controlnet_cond=inputs["image"],
        return_dict=False,
    )
    return tuple(answers)


def _call_flux(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a FluxControlNetModel: answers of the double blocks, then of the single ones."""
    image, config = inputs["image"], module.config
    doubles, singles = module(
        **packed_inputs(inputs),
        controlnet_cond=pack(image) if module.input_hint_block is None else image,
        controlnet_mode=inputs.get("mode"),
        guidance=inputs.get("guidance") if config.guidance_embeds else None,
        return_dict=False,
    )
    return (*(doubles or ()), *(singles or ()))


def _call_qwen_image(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a QwenImageControlNetModel."""
    sample = inputs["sample"]
    height, width = sample.shape[-2:]
    answers = module(
        hidden_states=pack(sample),
        controlnet_cond=pack(inputs["image"]),
        timestep=inputs["timestep"] / QWEN_TIME_SCALE,
        encoder_hidden_states=inputs[TEXT_STATES],
        encoder_hidden_states_mask=inputs[TEXT_MASK],
        img_shapes=[[(1, int(height) // PATCH, int(width) // PATCH)]],
        return_dict=False,
    )
    return tuple(answers or ())


def _behind_blocks(
    prefix: str, blocks: int, shape: tuple[int, ...], sources: Sequence[Callable[[int], int | None]]
) -> list[Residual]:
    """Return what is added behind the blocks of a stream, the same for a run of blocks."""
    found: dict[tuple[int | None, ...], list[str]] = {}
    last: tuple[int | None, ...] | None = None
    for block in range(blocks):
        wanted = tuple(source(block) for source in sources)
        if wanted != last:
            found.setdefault(wanted, []).append(f"{prefix}{block:03d}")
        last = wanted
    residuals = [Residual(tuple(names), shape, wanted) for wanted, names in found.items()]
    return residuals if any(k is not None for r in residuals for k in r.sources) else []


def _width(config: Config) -> int:
    return int(config["num_attention_heads"]) * int(config["attention_head_dim"])


def _spread(answers: int, blocks: int, first: int = 0) -> Callable[[int], int | None]:
    """Return which answer goes behind a block, where each goes behind as many (FLUX, Qwen)."""
    each = max(1, math.ceil(blocks / answers)) if answers else 0
    return lambda block: first + block // each if answers else None


def _of_mmdit(nets: Sequence[Config], model: Config, rows: int, columns: int) -> list[Residual]:
    patch, blocks = int(model.get("patch_size", 2)), int(model["num_layers"])
    shape = ((rows // patch) * (columns // patch), _width(model))

    def source(answers: int) -> Callable[[int], int]:
        return lambda block: int(block / (blocks / answers))

    return _behind_blocks(
        BLOCK_RESIDUAL, blocks, shape, [source(int(n["num_layers"])) for n in nets]
    )


def _of_flux(nets: Sequence[Config], model: Config, rows: int, columns: int) -> list[Residual]:
    shape = ((rows // PATCH) * (columns // PATCH), _width(model))
    doubles, singles = int(model["num_layers"]), int(model["num_single_layers"])
    return [
        *_behind_blocks(BLOCK_RESIDUAL, doubles, shape, [_doubles(net, doubles) for net in nets]),
        *_behind_blocks(
            SINGLE_RESIDUAL,
            singles,
            shape,
            [_spread(int(n["num_single_layers"]), singles, int(n["num_layers"])) for n in nets],
        ),
    ]


def _doubles(net: Config, blocks: int) -> Callable[[int], int | None]:
    """Return which answer goes behind a double block; XLabs' go round and round."""
    answers = int(net["num_layers"])
    if net.get("conditioning_embedding_channels") is None:
        return _spread(answers, blocks)
    return lambda block: block % answers


def _of_qwen_image(
    nets: Sequence[Config], model: Config, rows: int, columns: int
) -> list[Residual]:
    shape, blocks = ((rows // PATCH) * (columns // PATCH), _width(model)), int(model["num_layers"])
    sources = [_spread(int(net["num_layers"]), blocks) for net in nets]
    return _behind_blocks(BLOCK_RESIDUAL, blocks, shape, sources)


def _refuse_inpainting(key: str) -> Callable[[Config], str]:
    return lambda config: (
        f"repaints: it reads {config[key]} channels more than a picture ({key}), which is not "
        "offered"
        if config.get(key)
        else ""
    )


UNET_RESIDUALS = _of_unet
"""What tells the ControlNets of U-Nets: residuals of every level, for any size."""

_UNET = (
    "cross_attention_dim",
    "in_channels",
    "block_out_channels",
    "down_block_types",
    "layers_per_block",
    "addition_embed_type",
    "projection_class_embeddings_input_dim",
)
_TRANSFORMER = ("in_channels", "num_attention_heads", "attention_head_dim")

CONTROL_KINDS: Mapping[str, ControlKind] = {
    "ControlNetModel": ControlKind(
        families=("sd", "sdxl"),
        call=call_controlnet,
        passed=("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"),
        shared=_UNET,
        residuals=_of_unet,
        refuse=_refuse_unet,
        reads_latents=lambda _: False,
        darkest=0.0,
    ),
    "ControlNetUnionModel": ControlKind(
        families=("sdxl",),
        call=_call_union,
        passed=("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"),
        shared=_UNET,
        residuals=_of_unet,
        refuse=_refuse_unet,
        prepare=_keep_rows_apart,
        reads_latents=lambda _: False,
        darkest=0.0,
        modes=6,
    ),
    "FluxControlNetModel": ControlKind(
        families=("flux",),
        call=_call_flux,
        passed=("sample", "timestep", "encoder_hidden_states", "pooled_projections", "guidance"),
        shared=(*_TRANSFORMER, "joint_attention_dim", "pooled_projection_dim", "axes_dims_rope"),
        residuals=_of_flux,
        reads_latents=lambda config: config.get("conditioning_embedding_channels") is None,
    ),
    "QwenImageControlNetModel": ControlKind(
        families=("qwen-image",),
        call=_call_qwen_image,
        passed=("sample", "timestep", TEXT_STATES, TEXT_MASK),
        shared=(*_TRANSFORMER, "joint_attention_dim", "axes_dims_rope"),
        residuals=_of_qwen_image,
        refuse=_refuse_inpainting("extra_condition_channels"),
        prepare=use_real_turns,
        prompt_only=(TEXT_STATES, TEXT_MASK),
    ),
    "SD3ControlNetModel": ControlKind(
        families=("sd3",),
        call=_call_mmdit,
        passed=("sample", "timestep", "encoder_hidden_states", "pooled_projections"),
        shared=(*_TRANSFORMER, "patch_size", "pooled_projection_dim"),
        residuals=_of_mmdit,
        refuse=_refuse_inpainting("extra_conditioning_channels"),
    ),
}
"""By the class that a folder's ``config.json`` names."""
