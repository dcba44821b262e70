"""Write the text-to-picture model as a diffusers folder.

Usage: ``python export.py RUN OUT``. The folder is a plain Stable Diffusion
pipeline: any diffusers loads it. Weights are stored in half precision; the text
encoder's configuration asks for float32, so that a load without a dtype yields
float32 throughout. ``preview.json`` holds the linear map from latents to colours
that fits the decoder best: good enough to watch a picture come into being.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from autoencoder import build_autoencoder
from denoiser import BETA_END, BETA_START, NUM_TIMESTEPS, build_denoiser
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from diffusers import __version__ as diffusers_version
from torch.nn import functional as F

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers_version,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "BertModel"],
    "tokenizer": ["transformers", "BertTokenizerFast"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PREVIEW_PICTURES = 96
PREVIEW_DIGITS = 5


def build_scheduler() -> DPMSolverMultistepScheduler:
    """Return the scheduler that the pipeline uses unless told otherwise."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS,
        beta_start=BETA_START,
        beta_end=BETA_END,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # unused by trailing spacing, but Stable Diffusion pipelines warn without
    )


@torch.no_grad()
def fit_preview(vae: AutoencoderKL, latents: torch.Tensor) -> dict[str, list[object]]:
    """Fit colours of decoded pictures, averaged over 8 px squares, to latents.

    Args:
        vae: The autoencoder.
        latents: Clean latents. Shape (N, 8, 16, 16).

    Returns:
        ``matrix`` (3 rows of 8) and ``bias`` (3), giving colours in [-1, 1].
    """
    decoded = torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(32)])
    colours = F.avg_pool2d(decoded, 8).permute(0, 2, 3, 1).reshape(-1, 3)
    inputs = latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs, colours).solution.T
    rows = [[round(v, PREVIEW_DIGITS) for v in row] for row in solution.tolist()]
    return {"matrix": [row[:-1] for row in rows], "bias": [row[-1] for row in rows]}


def export(run: Path, out: Path, card: Path) -> None:
    """Write the folder."""
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    vae = build_autoencoder()
    vae.load_state_dict(torch.load(run / "autoencoder.pt", weights_only=True))
    latents = np.load(run / "latents.npy", mmap_mode="r")
    step = max(1, len(latents) // PREVIEW_PICTURES)
    preview = fit_preview(vae, torch.from_numpy(np.array(latents[::step])).float())
    unet = build_denoiser()
    checkpoint = torch.load(run / "denoiser.pt", weights_only=True)
    unet.load_state_dict(checkpoint["average"])
    vae.half().save_pretrained(part / "vae")
    unet.half().save_pretrained(part / "unet")
    build_scheduler().save_pretrained(part / "scheduler")
    shutil.copytree(run / "text_encoder", part / "text_encoder")
    shutil.copytree(run / "tokenizer", part / "tokenizer")
    (part / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n", "utf-8")
    (part / "preview.json").write_text(json.dumps(preview, indent=2) + "\n", "utf-8")
    shutil.copy(card, part / "model_card.md")
    for path in part.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{checkpoint['seen']} samples seen, {size / 1e6:.1f} MB")


def main() -> None:
    """Export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder with the trained parts")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    export(arguments.run, arguments.out, Path(__file__).parent / "plate_card.md")


if __name__ == "__main__":
    main()
