"""Models of real configurations with random weights, and programs that draw with them.

Nothing is downloaded. A program runs in a process of its own, and prints one line: what it
took of processor and clock, its peak of resident memory, its seconds a step.
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROMPT, SEED, SCALE = "a photo of an astronaut riding a horse on mars", 7, 7.5
UNET: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "attention_head_dim": 8, "cross_attention_dim": 768, "norm_num_groups": 32,
}  # fmt: skip
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12, "projection_dim": 768,
}  # fmt: skip
BETAS: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Published:
    """What a published checkpoint is made of.

    Attributes:
        pipeline: Its class in diffusers.
        unet: Of the denoiser.
        texts: Of each text encoder: its class in transformers, its configuration.
        scheduler: Its class and configuration.
        vae: Of the autoencoder, beside what all have.
    """

    pipeline: str
    unet: dict[str, Any]
    texts: tuple[tuple[str, dict[str, Any]], ...]
    scheduler: dict[str, Any]
    vae: dict[str, Any] = field(default_factory=dict)


PUBLISHED = {
    "sd15": Published(
        "StableDiffusionPipeline", UNET, (("CLIPTextModel", TEXT),),
        {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True},
    ),
    "sd21": Published(
        "StableDiffusionPipeline",
        UNET | {
            "sample_size": 96, "attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024,
            "use_linear_projection": True, "upcast_attention": True,
        },
        (("CLIPTextModel", {
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
            "num_hidden_layers": 23, "projection_dim": 512, "hidden_act": "gelu",
        }),),
        {"_class_name": "DDIMScheduler", **BETAS, "prediction_type": "v_prediction",
         "clip_sample": False, "set_alpha_to_one": False},
    ),
    "sdxl": Published(
        "StableDiffusionXLPipeline",
        UNET | {
            "sample_size": 128, "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
            "up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"),
            "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10),
            "cross_attention_dim": 2048, "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        (("CLIPTextModel", TEXT), ("CLIPTextModelWithProjection", {
            "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
            "num_hidden_layers": 32, "projection_dim": 1280, "hidden_act": "gelu",
        })),
        {"_class_name": "EulerDiscreteScheduler", **BETAS, "timestep_spacing": "leading"},
        {"scaling_factor": 0.13025, "sample_size": 1024, "force_upcast": True},
    ),
}  # fmt: skip
"""Published checkpoints of Stability: configurations as their repositories have them."""

MEASURE = """
import json, resource, time
began, seen = time.perf_counter(), []
def tell(**more):
    u = resource.getrusage(resource.RUSAGE_SELF)
    gaps = sorted(b - a for a, b in zip(seen, seen[1:]))
    print(json.dumps({'cpu_s': u.ru_utime + u.ru_stime, 'peak_mb': u.ru_maxrss / 1024,
                      'step_s': gaps[len(gaps) // 2] if gaps else 0.0, **more}))
"""
THEIRS = f"""{MEASURE}
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
side, steps = int(sys.argv[3]), int(sys.argv[4])
def note(pipeline, step, timestep, tensors):
    seen.append(time.perf_counter())
    return tensors
pipeline({PROMPT!r}, num_inference_steps=steps, guidance_scale={SCALE}, width=side, height=side,
         generator=torch.Generator().manual_seed({SEED}), callback_on_step_end=note,
         ).images[0].save(sys.argv[2])
tell()
"""
OURS = f"""{MEASURE}
import sys, mezzotint as mz
from mezzotint.observe.stages import listening
from mezzotint.types import Stepped
side, steps, tier, options = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6]
stages = {{}}
def hear(stage):
    if stage.seconds is not None:
        name = stage.doing + '_s'
        stages[name] = round(stages.get(name, 0.0) + stage.seconds, 1)
options = json.loads(options)
with listening(hear), mz.Engine(engine={{'cache_disk_bytes': 0}}, **options) as engine:
    handle = engine.submit(mz.GenerationRequest(
        model=sys.argv[1], prompt={PROMPT!r}, seed={SEED}, guidance_scale={SCALE}, width=side,
        height=side, num_inference_steps=steps, reproducibility=tier))
    for event in handle.events():
        if isinstance(event, Stepped):
            seen.append(time.perf_counter())
    result = handle.result()
result.images[0].save(sys.argv[2])
tell(notes=[w for w in result.images[0].warnings], **stages)
"""


def narrowed(widths: tuple[int, ...], by: int) -> tuple[int, ...]:
    """Divide channels, and keep them multiples of the groups of a norm."""
    return tuple(max(width // by // 32, 1) * 32 for width in widths)


def make(folder: Path, name: str, *, narrower: int = 1, seed: int = 0) -> None:
    """Write the folder of a published model with random weights, in float16.

    They are drawn as torch draws those of a new layer: evenly, up to one over the square root of
    the numbers that flow into an output. Larger ones would make a network that multiplies the
    smallest error from layer to layer, which trained networks do not.

    Args:
        folder: Where; it must not be there.
        name: One of :data:`PUBLISHED`.
        narrower: What the widths of U-Net and autoencoder, and the layers of the text encoders,
            are divided by.
        seed: Of the weights.
    """
    import diffusers
    import torch
    import transformers
    from accelerate import init_empty_weights
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTokenizer

    from mezzotint.models.formats.single_file import clip_vocabulary

    model = PUBLISHED[name]
    unet, vae = (
        {**config, "block_out_channels": narrowed(config["block_out_channels"], narrower)}
        for config in (model.unet, VAE | model.vae)
    )
    with init_empty_weights():
        modules: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel(**unet),
            "vae": diffusers.AutoencoderKL(**vae),
        }
        for k, (kind, text) in enumerate(model.texts):
            layers = max(text["num_hidden_layers"] // narrower, 1)
            config = CLIPTextConfig(**text | {"num_hidden_layers": layers})
            modules[f"text_encoder{_numbered(k)}"] = getattr(transformers, kind)(config)
    generator = torch.Generator().manual_seed(seed)
    index: dict[str, Any] = {"_class_name": model.pipeline, "_diffusers_version": "0.6.0"}
    for role, module in modules.items():
        (folder / role).mkdir(parents=True)
        shapes = {key: tensor.shape for key, tensor in module.state_dict().items()}
        weights: dict[str, torch.Tensor] = {}
        for key, shape in shapes.items():
            fed = shapes[f"{key.removesuffix('.bias')}.weight"] if key.endswith(".bias") else shape
            if len(fed) > 1:
                edge = fed[1:].numel() ** -0.5
                values = edge * (2 * torch.rand(shape, generator=generator) - 1)
            else:  # of a norm
                values = torch.full(shape, float(key.endswith("weight")))
            weights[key] = values.half()
        is_text = role.startswith("text_encoder")
        stem = "model" if is_text else "diffusion_pytorch_model"
        save_file(weights, folder / role / f"{stem}.safetensors", {"format": "pt"})
        config = module.config.to_dict() if is_text else dict(module.config)
        config = {k: v for k, v in config.items() if k != "dtype"}
        if "scaling_factor" not in model.vae:  # as in folders of that age
            config.pop("scaling_factor", None)
        (folder / role / "config.json").write_text(json.dumps(config, default=list))
        library = "transformers" if is_text else "diffusers"
        index[role] = [library, type(module).__name__]
    words, merges = clip_vocabulary()
    for k in range(len(model.texts)):
        role = f"tokenizer{_numbered(k)}"
        tokenizer = CLIPTokenizer(vocab=words, merges=merges, model_max_length=77)
        tokenizer.save_pretrained(folder / role)
        index[role] = ["transformers", "CLIPTokenizer"]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(model.scheduler))
    index["scheduler"] = ["diffusers", model.scheduler["_class_name"]]
    if len(model.texts) == 1:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None]}
        index["requires_safety_checker"] = False
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def _numbered(k: int) -> str:
    """Return what diffusers puts behind a role of which there are several."""
    return f"_{k + 1}" if k else ""


def run(script: str, home: Path, *arguments: object) -> dict[str, Any]:
    """Draw in a fresh process; return what it printed, its clock and the machine's load."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "MEZZOTINT_HOME": str(home)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no reason"])[-1][:300]}
    return {
        **json.loads(done.stdout.splitlines()[-1]),
        "clock_s": time.perf_counter() - began,
        "load": os.getloadavg()[0],
    }


def decibels(first: Path, second: Path) -> float:
    """Return the ratio of peak to noise between two pictures."""
    import numpy as np
    from PIL import Image

    one, other = (np.asarray(Image.open(p).convert("RGB"), float) for p in (first, second))
    noise = float(((one - other) ** 2).mean())
    return float("inf") if noise == 0 else 10 * float(np.log10(255**2 / noise))


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    """Round figures for people."""
    return {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}
