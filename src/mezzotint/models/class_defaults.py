"""Class defaults: what a configuration means by the keys that it does not hold.

Configurations of diffusers and transformers hold what their version of the day wrote;
whatever a later version added has the default of its class. The VAE of Stable Diffusion
1.5 says nothing of ``scaling_factor``, and means 0.18215. The classes themselves cost
seconds to import, so the defaults of the keys that are read here stand here; a test
compares each with its class.
"""

from collections.abc import Mapping
from typing import Any

__all__ = [
    "CLASS_DEFAULTS",
    "OUTDATED_PIPELINES",
    "SCHEDULER_DEFAULTS",
    "with_class_defaults",
    "with_scheduler_defaults",
]

_CLIP_TEXT = {
    "hidden_size": 512,
    "max_position_embeddings": 77,
    "projection_dim": 512,
    "vocab_size": 49408,
}
_CLIP_VISION = {"hidden_size": 768, "image_size": 224, "projection_dim": 512}
_T5 = {"d_model": 512, "vocab_size": 32128}
_QWEN_MEAN = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
]  # fmt: skip
_QWEN_STD = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.916,
]  # fmt: skip

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "AutoencoderDC": {
        "encoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
        "latent_channels": 32,
        "scaling_factor": 1.0,
    },
    "AutoencoderKL": {
        "block_out_channels": (64,),
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    "AutoencoderKLFlux2": {
        "block_out_channels": (128, 256, 512, 512),
        "latent_channels": 32,
        "sample_size": 1024,
    },
    "AutoencoderKLQwenImage": {
        "latents_mean": _QWEN_MEAN,
        "latents_std": _QWEN_STD,
        "temperal_downsample": [False, True, True],
        "z_dim": 16,
    },
    "AutoencoderTiny": {
        "decoder_block_out_channels": (64, 64, 64, 64),
        "latent_channels": 4,
        "scaling_factor": 1.0,
        "shift_factor": 0.0,
    },
    "BertModel": {"hidden_size": 768, "max_position_embeddings": 512, "vocab_size": 30522},
    "CLIPTextModel": _CLIP_TEXT,
    "CLIPTextModelWithProjection": _CLIP_TEXT,
    "CLIPVisionModelWithProjection": _CLIP_VISION,
    "ControlNetModel": {
        "block_out_channels": (320, 640, 1280, 1280),
        "conditioning_embedding_out_channels": (16, 32, 96, 256),
        "cross_attention_dim": 1280,
        "in_channels": 4,
        "layers_per_block": 2,
    },
    "DiTTransformer2DModel": {
        "in_channels": 4,
        "num_embeds_ada_norm": 1000,
        "patch_size": 2,
        "sample_size": 32,
    },
    "Flux2Transformer2DModel": {
        "guidance_embeds": True,
        "in_channels": 128,
        "joint_attention_dim": 15360,
    },
    "FluxControlNetModel": {
        "guidance_embeds": False,
        "num_layers": 19,
        "num_single_layers": 38,
    },
    "FluxTransformer2DModel": {
        "attention_head_dim": 128,
        "axes_dims_rope": (16, 56, 56),
        "guidance_embeds": False,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "pooled_projection_dim": 768,
    },
    "Lumina2Transformer2DModel": {"cap_feat_dim": 1024, "in_channels": 16},
    "PixArtTransformer2DModel": {"in_channels": 4, "patch_size": 2, "sample_size": 128},
    "QwenImageControlNetModel": {"extra_condition_channels": 0, "num_layers": 60},
    "QwenImageTransformer2DModel": {
        "attention_head_dim": 128,
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "num_attention_heads": 24,
        "num_layers": 60,
    },
    "SD3ControlNetModel": {
        "extra_conditioning_channels": 0,
        "force_zeros_for_pooled_projection": True,
        "num_layers": 18,
        "use_pos_embed": True,
    },
    "SD3Transformer2DModel": {
        "attention_head_dim": 64,
        "in_channels": 16,
        "joint_attention_dim": 4096,
        "num_attention_heads": 18,
        "num_layers": 18,
        "patch_size": 2,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 96,
        "sample_size": 128,
    },
    "SanaTransformer2DModel": {
        "caption_channels": 2304,
        "guidance_embeds": False,
        "in_channels": 32,
        "sample_size": 32,
    },
    "T5EncoderModel": _T5,
    "UNet2DConditionModel": {
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1280,
        "in_channels": 4,
        "layers_per_block": 2,
    },
    "UNet2DModel": {"block_out_channels": (224, 448, 672, 896), "in_channels": 3},
    "ZImageTransformer2DModel": {"cap_feat_dim": 2560, "in_channels": 16},
}
"""Defaults by class: every key that this program reads and whose default is not None."""

_NARROW = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT = {**_NARROW, "beta_schedule": "scaled_linear"}

SCHEDULER_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "CogVideoXDDIMScheduler": {**_LATENT, "clip_sample": True},
    "DDIMParallelScheduler": {"clip_sample": True},
    "DDIMScheduler": {"clip_sample": True},
    "DDPMParallelScheduler": {"clip_sample": True},
    "DDPMScheduler": {"clip_sample": True},
    "HeunDiscreteScheduler": _NARROW,
    "KDPM2AncestralDiscreteScheduler": _NARROW,
    "KDPM2DiscreteScheduler": _NARROW,
    "LCMScheduler": _LATENT,
    "TCDScheduler": _LATENT,
}
"""Defaults by scheduler class, where they are not those that all schedulers share.

What a network was trained with is said by the class it came with, so these hold whichever
scheduler a request asks for. How a scheduler spaces its steps is its own affair, and not
among them."""

OUTDATED_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
"""Pipelines that correct what configurations of their first year said wrongly."""

_WITHOUT_OFFSET = ("DPMSolverSinglestepScheduler",)


def with_class_defaults(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's configuration with the defaults of its class for what it lacks.

    Args:
        class_name: Class in diffusers or transformers; one without a row in
            :data:`CLASS_DEFAULTS` adds nothing.
        config: As it was read; a key that holds None lacks a value too.
    """
    defaults = CLASS_DEFAULTS.get(class_name, {})
    lacking = {key: value for key, value in defaults.items() if config.get(key) is None}
    return {**config, **lacking}


def with_scheduler_defaults(config: Mapping[str, Any], pipeline: str) -> dict[str, Any]:
    """Return a scheduler's configuration with what its class and pipeline mean by what it lacks.

    The pipelines of Stable Diffusion 1.x and 2.x hold ``steps_offset`` other than 1 and
    ``clip_sample`` for outdated, and so does this.

    Args:
        config: As it was read, with ``_class_name``. Of ``predict_epsilon``, which said
            until diffusers 0.8 what the network predicts, ``prediction_type`` is made.
        pipeline: Class name of the pipeline that it came with.
    """
    name = str(config.get("_class_name") or "")
    defaults = SCHEDULER_DEFAULTS.get(name, {})
    lacking = {key: value for key, value in defaults.items() if config.get(key) is None}
    filled = {**config, **lacking}
    if config.get("predict_epsilon") is False and config.get("prediction_type") is None:
        filled["prediction_type"] = "sample"
    if name and pipeline in OUTDATED_PIPELINES:
        filled |= {} if name in _WITHOUT_OFFSET else {"steps_offset": 1}
        if filled.get("clip_sample"):
            filled["clip_sample"] = False
    return filled
