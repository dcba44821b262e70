"""Models of real configurations with random weights, and programs that draw with them.

Nothing is downloaded. A program runs in a process of its own, and prints one line: what it
took of processor and clock, its peak of resident memory, its seconds a step.
"""

import json
import os
import subprocess
import sys
import time
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
PNDM: dict[str, Any] = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "skip_prk_steps": True, "steps_offset": 1,
}  # fmt: skip
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


def make_sd15(folder: Path, *, narrower: int = 1, seed: int = 0) -> None:
    """Write the folder of a Stable Diffusion 1.5 with random weights, as it was published.

    Args:
        folder: Where; it must not be there.
        narrower: What the widths of U-Net and autoencoder, and the layers of the text encoder,
            are divided by.
        seed: Of the weights.
    """
    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from mezzotint.models.formats.single_file import clip_vocabulary

    unet, vae = (
        {**config, "block_out_channels": narrowed(config["block_out_channels"], narrower)}
        for config in (UNET, VAE)
    )
    text = {**TEXT, "num_hidden_layers": max(TEXT["num_hidden_layers"] // narrower, 1)}
    with init_empty_weights():
        modules = {
            "unet": UNet2DConditionModel(**unet),
            "vae": AutoencoderKL(**vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        }
    generator = torch.Generator().manual_seed(seed)
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.6.0",
    }
    for role, module in modules.items():
        (folder / role).mkdir(parents=True)
        weights: dict[str, torch.Tensor] = {}
        for name, tensor in module.state_dict().items():
            if tensor.ndim > 1:
                scale = tensor[0].numel() ** -0.5
                values = torch.randn(tensor.shape, generator=generator) * scale
            else:
                values = torch.full(tensor.shape, float(name.endswith("weight")))
            weights[name] = values.half()
        is_text = role == "text_encoder"
        stem = "model" if is_text else "diffusion_pytorch_model"
        save_file(weights, folder / role / f"{stem}.safetensors", {"format": "pt"})
        config = module.config.to_dict() if is_text else dict(module.config)
        config = {k: v for k, v in config.items() if k not in ("scaling_factor", "dtype")}
        (folder / role / "config.json").write_text(json.dumps(config, default=list))
        library = "transformers" if is_text else "diffusers"
        index[role] = [library, type(module).__name__]
    words, merges = clip_vocabulary()
    CLIPTokenizer(vocab=words, merges=merges, model_max_length=77).save_pretrained(
        folder / "tokenizer"
    )
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "PNDMScheduler", **PNDM}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index |= {
        "scheduler": ["diffusers", "PNDMScheduler"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


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
