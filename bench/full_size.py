"""Models of full size: the first picture, the second start and memory, beside diffusers.

    mezzotint bench full_size [--side 512] [--steps 3] [--rounds 1] [--folder DIR]

A Stable Diffusion 1.5 with random weights is made from its published configuration
(860 M + 123 M + 84 M numbers, float16 on disk; nothing is downloaded). In each round a fresh
process with diffusers, one of ours in an empty home and one of ours in that home again draw
the same picture; processor and clock seconds and the peak of resident memory are theirs
alone. Pictures are compared: random weights draw noise, but the same noise.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
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
PEAK = "import json, resource as r, time; u = r.getrusage(r.RUSAGE_SELF); print(json.dumps("
PEAK += "{'cpu_s': u.ru_utime + u.ru_stime, 'peak_mb': u.ru_maxrss / 1024}))"
THEIRS = f"""
import sys, torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
pipeline.set_progress_bar_config(disable=True)
side, steps = int(sys.argv[3]), int(sys.argv[4])
pipeline({PROMPT!r}, num_inference_steps=steps, guidance_scale={SCALE}, width=side, height=side,
         generator=torch.Generator().manual_seed({SEED})).images[0].save(sys.argv[2])
{PEAK}
"""
OURS = f"""
import sys, mezzotint as mz
side, steps = int(sys.argv[3]), int(sys.argv[4])
result = mz.generate(mz.GenerationRequest(
    model=sys.argv[1], prompt={PROMPT!r}, seed={SEED}, guidance_scale={SCALE}, width=side,
    height=side, num_inference_steps=steps))
result.images[0].save(sys.argv[2])
{PEAK}
"""


def make_sd15(folder: Path) -> None:
    """Write the folder of a Stable Diffusion 1.5 with random weights, as it was published."""
    import torch
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from mezzotint.models.formats.single_file import clip_vocabulary

    with init_empty_weights():
        modules = {
            "unet": UNet2DConditionModel(**UNET),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT)),
        }
    generator = torch.Generator().manual_seed(0)
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


def run(script: str, folder: Path, picture: Path, home: Path, options: Any) -> dict[str, float]:
    """Draw in a fresh process; return its seconds and its peak of memory."""
    import time

    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder), str(picture),
         str(options.side), str(options.steps)],
        env={**os.environ, "MEZZOTINT_HOME": str(home)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {**json.loads(done.stdout.splitlines()[-1]), "clock_s": time.perf_counter() - began,
            "load": os.getloadavg()[0]}  # fmt: skip


def decibels(first: Path, second: Path) -> float:
    """Return the ratio of peak to noise between two pictures."""
    import numpy as np
    from PIL import Image

    one, other = (np.asarray(Image.open(p).convert("RGB"), float) for p in (first, second))
    noise = float(((one - other) ** 2).mean())
    return float("inf") if noise == 0 else 10 * float(np.log10(255**2 / noise))


def main() -> None:
    """Make the model if it is not there, draw in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = options.folder or work / "sd15"
        if not (folder / "model_index.json").is_file():
            make_sd15(folder)
        rows: list[dict[str, Any]] = []
        for k in range(options.rounds):
            home = work / f"home{k}"
            for label, script in (
                ("diffusers", THEIRS), ("ours, first", OURS), ("ours, again", OURS),
            ):  # fmt: skip
                picture = work / f"{label}.png"
                # Drawn again, not found: an equal request is answered from the results.
                shutil.rmtree(home / "cache" / "results", ignore_errors=True)
                found = run(script, folder, picture, home, options)
                rows.append({"who": label, **found})
                print(label, {n: round(v, 1) for n, v in found.items()}, flush=True)
            gap = decibels(work / "diffusers.png", work / "ours, first.png")
            same = (work / "ours, first.png").read_bytes() == (
                work / "ours, again.png"
            ).read_bytes()
            print(f"to diffusers {gap:.1f} dB; second start the same bytes: {same}", flush=True)


if __name__ == "__main__":
    main()
