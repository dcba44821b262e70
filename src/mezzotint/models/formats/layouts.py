"""Layouts: SD 1.x, 2.x, XL and 3 checkpoints, told apart and translated.

Configurations are read from names and shapes alone; tensors are renamed to what
diffusers and transformers call them.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from mezzotint.errors import WeightsError
from mezzotint.models.parts import SafetensorsHeader

__all__ = ["PREFIXES", "SD3_T5", "Layout", "Recipe", "layout_of", "recipes"]

Layout = Literal["sd1", "sd2", "sdxl", "sd3"]
UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIP = {"sd1": "cond_stage_model.transformer.", "sdxl": "conditioner.embedders.0.transformer."}
OPEN_CLIP = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
SD3_CLIPS = ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.")
SD3_T5 = "text_encoders.t5xxl."
HEAD_WIDTH = 64
SD1_HEADS = 8
SD2_LAYERS = 24  # SD 2.x reads the last but one of these
Shapes = Mapping[str, tuple[int, ...]]
PREFIXES: Mapping[str, str | tuple[str, ...]] = {
    "unet": UNET,
    "transformer": UNET,
    "vae": VAE,
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", SD3_CLIPS[0]),
    "text_encoder_2": ("conditioner.embedders.1.", SD3_CLIPS[1]),
}
"""What the names of each network's tensors start with."""


_TRANSFORMERS = {
    "joint_blocks.": "Stable Diffusion 3",
    "distilled_guidance_layer.": "Chroma",
    "double_stream_modulation_img.": "FLUX.2",
    "double_blocks.": "FLUX",
    "img_mod.": "Qwen-Image",
    "txt_in.text_norm.": "Qwen-Image 2.1",
    "cap_embedder.": "Z-Image or Lumina",
    "attention_y_norm.": "Sana",
}
"""What a name of each family's transformer holds, the first that is found counts."""


def layout_of(header: SafetensorsHeader, path: Path) -> Layout:
    """Tell the layout of a checkpoint by the names of its tensors.

    Raises:
        WeightsError: If it is none of the four, or a part is missing.
    """
    names = header.tensors

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in names)

    whole = [name for name in names if "lora" not in name]
    family = next((f for mark, f in _TRANSFORMERS.items() if any(mark in n for n in whole)), "")
    if family == "Stable Diffusion 3" and has(VAE) and all(map(has, SD3_CLIPS)):
        return "sd3"
    if family:
        what = f"a transformer of {family} without what reads its prompts"
        if has("text_encoders."):
            what = f"a model of {family} without the vocabularies that its text encoders read by"
        raise WeightsError(
            f"{path} is {what}: mezzotint models add NAME {path.name} --base FOLDER takes the "
            "rest from a diffusers folder of its model; or put it there yourself, into its folder "
            "transformer in place of the weights"
        )
    if not has(UNET):
        raise WeightsError(
            f"{path} is no SD 1.x, 2.x, XL or 3 checkpoint: no tensor is called {UNET}...; "
            "a LoRA, ControlNet or VAE alone is no model, and a denoiser alone needs the rest: "
            f"mezzotint models add NAME {path.name} --base FOLDER"
        )
    if has("conditioner.embedders.0.model."):
        raise WeightsError(f"{path} is an SDXL refiner, which cannot draw on its own")
    found: Layout | None = None
    if has(OPEN_CLIP["sdxl"]) and has(CLIP["sdxl"]):
        found = "sdxl"
    elif has(OPEN_CLIP["sd2"]):
        found = "sd2"
    elif has(CLIP["sd1"]):
        found = "sd1"
    if found is None:
        raise WeightsError(f"{path} holds no CLIP text encoder of SD 1.x, 2.x or XL")
    if not has(VAE):
        raise WeightsError(f"{path} holds no autoencoder (no tensor is called {VAE}...)")
    channels = names[f"{UNET}input_blocks.0.0.weight"][1][1]
    latents = names[f"{VAE}decoder.conv_in.weight"][1][1]
    if channels != latents:
        raise WeightsError(
            f"{path} takes {channels} input channels; checkpoints for inpainting or editing "
            f"(more than {latents}) are not read, their plain model is"
        )
    return found


Convert = Callable[[dict[str, Tensor], Mapping[str, Any]], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one network: its class, its configuration, how tensors are renamed."""

    class_name: str
    config: dict[str, Any]
    convert: Convert


def recipes(header: SafetensorsHeader, layout: Layout) -> dict[str, Recipe]:
    """Return class, configuration and conversion of each network."""
    shapes = {name: shape for name, (_, shape) in header.tensors.items()}
    if layout == "sd3":
        return _sd3_recipes(shapes)
    unet = _unet_config(_below(shapes, UNET), layout)
    vae = _vae_config(_below(shapes, VAE), layout)
    found = {
        "unet": Recipe("UNet2DConditionModel", unet, _convert_unet),
        "vae": Recipe("AutoencoderKL", vae, _convert_vae),
    }
    if layout in CLIP:
        config = _clip_config(_below(shapes, CLIP[layout]))
        convert = partial(_convert_clip, CLIP[layout])
        found["text_encoder"] = Recipe("CLIPTextModel", config, convert)
    if layout in OPEN_CLIP:
        prefix, is_xl = OPEN_CLIP[layout], layout == "sdxl"
        config = _open_clip_config(_below(shapes, prefix), layout)
        found["text_encoder_2" if is_xl else "text_encoder"] = Recipe(
            "CLIPTextModelWithProjection" if is_xl else "CLIPTextModel",
            config,
            partial(_convert_open_clip, prefix, config["num_hidden_layers"]),
        )
    return found


def _sd3_recipes(shapes: Shapes) -> dict[str, Recipe]:
    """Return class, configuration and conversion of each network of Stable Diffusion 3."""
    scale = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "sample_size": 1024}
    plain = {"use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True}
    vae = _vae_config(_below(shapes, VAE), "sd3") | scale | plain
    found = {
        "transformer": Recipe("SD3Transformer2DModel", _sd3_config(shapes), _convert_sd3),
        "vae": Recipe("AutoencoderKL", vae, _convert_vae),
    }
    for role, prefix, act in (
        ("text_encoder", SD3_CLIPS[0], "quick_gelu"),
        ("text_encoder_2", SD3_CLIPS[1], "gelu"),
    ):
        config = _clip_config(_below(shapes, prefix)) | {"hidden_act": act}
        convert = partial(_convert_projecting, prefix)
        found[role] = Recipe("CLIPTextModelWithProjection", config, convert)
    return found


def _sd3_config(shapes: Shapes) -> dict[str, Any]:
    """Read an MM-DiT's configuration from its shapes."""
    own = _below(shapes, UNET)
    width, channels, patch, _ = own["x_embedder.proj.weight"]
    layers = _count(own, r"joint_blocks\.(\d+)\.")
    twice = [k for k in range(layers) if f"joint_blocks.{k}.x_block.attn2.qkv.weight" in own]
    return {
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": own["final_layer.linear.weight"][0] // patch**2,
        "num_layers": layers,
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": width // HEAD_WIDTH,
        "joint_attention_dim": own["context_embedder.weight"][1],
        "caption_projection_dim": own["context_embedder.weight"][0],
        "pooled_projection_dim": own["y_embedder.mlp.0.weight"][1],
        "pos_embed_max_size": math.isqrt(own["pos_embed"][1]),
        "dual_attention_layers": twice,
        "qk_norm": "rms_norm" if any(".ln_q." in name for name in own) else None,
    }


def _below(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return the tensors of one network, by their names inside it."""
    return {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}


def _count(shapes: Shapes, pattern: str) -> int:
    """Count the different numbers that a name has in one place."""
    return len({match[1] for name in shapes if (match := re.match(pattern, name))})


def _unet_config(shapes: Shapes, layout: Layout) -> dict[str, Any]:
    """Read a U-Net's configuration from its shapes."""
    levels: list[list[tuple[int, int]]] = [[]]  # per level: (channels, transformer layers)
    for k in range(1, _count(shapes, r"input_blocks\.(\d+)\.")):
        if f"input_blocks.{k}.0.op.weight" in shapes:
            levels.append([])
            continue
        channels = shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0]
        depth = _count(shapes, rf"input_blocks\.{k}\.1\.transformer_blocks\.(\d+)\.")
        levels[-1].append((channels, depth))
    widths = [level[0][0] for level in levels]
    depths = [level[0][1] for level in levels]
    attention = next(n for n in shapes if n.endswith("attn2.to_k.weight"))
    projection = next(n for n in shapes if n.endswith("1.proj_in.weight"))
    config: dict[str, Any] = {
        "sample_size": {"sd1": 64, "sd2": 96, "sdxl": 128}[layout],
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "cross_attention_dim": shapes[attention][1],
        "use_linear_projection": len(shapes[projection]) == 2,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in depths[::-1]],
        "attention_head_dim": SD1_HEADS
        if layout == "sd1"
        else [width // HEAD_WIDTH for width in widths],
    }
    middle = _count(shapes, r"middle_block\.1\.transformer_blocks\.(\d+)\.")
    if any(d > 1 for d in depths):
        # Levels without attention still need a number; the innermost one is the middle's.
        config["transformer_layers_per_block"] = [*(d or 1 for d in depths[:-1]), middle]
    if "label_emb.0.0.weight" in shapes:
        config |= {
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": shapes["label_emb.0.0.weight"][1],
            "addition_time_embed_dim": 256,
        }
    return config


def _vae_config(shapes: Shapes, layout: Layout) -> dict[str, Any]:
    """Read an autoencoder's configuration from its shapes."""
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    widths = [shapes[f"encoder.down.{k}.block.0.conv1.weight"][0] for k in range(levels)]
    is_xl = layout == "sdxl"
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": 1024 if is_xl else 512,
        "scaling_factor": 0.13025 if is_xl else 0.18215,
        "force_upcast": is_xl,
    }


def _clip_config(shapes: Shapes) -> dict[str, Any]:
    """Read a CLIP text encoder's configuration from its shapes."""
    inner = "text_model." if any(n.startswith("text_model.") for n in shapes) else ""
    vocabulary, width = shapes[f"{inner}embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[f"{inner}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, rf"{re.escape(inner)}encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": shapes[f"{inner}embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        **_special_ids(vocabulary),
    }


def _open_clip_config(shapes: Shapes, layout: Layout) -> dict[str, Any]:
    """Read an OpenCLIP text encoder's configuration from its shapes."""
    vocabulary, width = shapes["token_embedding.weight"]
    layers = _count(shapes, r"transformer\.resblocks\.(\d+)\.")
    if layout == "sd2" and layers == SD2_LAYERS:
        layers -= 1
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_WIDTH),
        "max_position_embeddings": shapes["positional_embedding"][0],
        "hidden_act": "gelu",
        "projection_dim": shapes.get("text_projection", (width, width))[1],
        **_special_ids(vocabulary),
    }


def _special_ids(vocabulary: int) -> dict[str, int]:
    """Return the ids of start and end: the last two of CLIP's vocabulary."""
    return {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": 1}


class _Converters(Protocol):
    """Diffusers' renamers of single files; they take what they rename out of ``state``."""

    def convert_sd3_transformer_checkpoint_to_diffusers(
        self, state: dict[str, Tensor], /
    ) -> dict[str, Tensor]: ...

    def convert_ldm_unet_checkpoint(
        self, state: dict[str, Tensor], config: dict[str, Any], /
    ) -> dict[str, Tensor]: ...

    def convert_ldm_vae_checkpoint(
        self, state: dict[str, Tensor], config: dict[str, Any], /
    ) -> dict[str, Tensor]: ...


def _converters() -> _Converters:
    from diffusers.loaders import single_file_utils

    return cast("_Converters", single_file_utils)


def _convert_sd3(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    return _converters().convert_sd3_transformer_checkpoint_to_diffusers(state)


def _convert_projecting(
    prefix: str, state: dict[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Rename a CLIP with a projection; a file that has none means that nothing is projected."""
    converted = _convert_clip(prefix, state, config)
    converted.setdefault("text_projection.weight", torch.eye(int(config["hidden_size"])))
    return converted


def _convert_unet(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    return _converters().convert_ldm_unet_checkpoint(state, dict(config))


def _convert_vae(state: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    return _converters().convert_ldm_vae_checkpoint(state, dict(config))


def _convert_clip(
    prefix: str, state: dict[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


OPEN_CLIP_NAMES = (
    ("transformer.resblocks.", "text_model.encoder.layers."),
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("ln_final", "text_model.final_layer_norm"),
    ("token_embedding", "text_model.embeddings.token_embedding"),
)


def _convert_open_clip(
    prefix: str, layers: int, state: dict[str, Tensor], config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Rename OpenCLIP's tensors; its joint query, key and value weights are split."""
    converted: dict[str, Tensor] = {}
    for full, tensor in state.items():
        name = full.removeprefix(prefix)
        block = re.match(r"transformer\.resblocks\.(\d+)\.", name)
        if block and int(block[1]) >= layers:
            continue
        for old, new in OPEN_CLIP_NAMES:
            name = name.replace(old, new)
        if name == "positional_embedding":
            converted["text_model.embeddings.position_embedding.weight"] = tensor
        elif name == "text_projection":
            converted["text_projection.weight"] = tensor.T.contiguous()
        elif "attn.in_proj_" in name:
            stem, _, kind = name.partition("attn.in_proj_")
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                converted[f"{stem}self_attn.{letter}_proj.{kind}"] = third.contiguous()
        else:
            converted[name] = tensor
    return converted
