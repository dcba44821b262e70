"""How far a run of ``denoiser.py`` is: loss by noise level, and what the judge says.

Usage: ``python progress.py DATA RUN [--captions 100] [--scale 4] [--weights plate]``. Takes
the mean of the weights in ``RUN/denoiser.pt`` (with ``--weights``, those of a model by name or
folder) and prints one line of JSON, so that runs can be compared while they go on. The judge,
its captions and its distances are those of the folder ``--judge``, this one unless told:

- the squared error of v on the real pictures of the benchmark's captions, with noise that is
  always the same, at five timesteps: differences of a percent mean something;
- the judge's figures on the first captions of the benchmark, caption k from seed k, in
  batches: quick, and to a few percent;
- with ``--varied 8``, how far `SEEDS` pictures of each of that many captions are apart, beside
  real ones (``distances.py``).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder import to_pixels
from denoiser import signal_levels
from distances import WEIGHTS as DISTANCES
from distances import Reference
from evaluate import draw
from evaluator import CAPTIONS_FILE, HERE, real_pictures
from judge import WEIGHTS as EYES
from judge import Judge
from precision import fast_floats
from torch import Tensor
from torch.nn import functional as F

SEEDS = 5
TIMESTEPS = (50, 150, 300, 500, 800)
KEYS = ("top_1", "name_top_1", "group", "background_asked_by_colour", "counts_balanced")


@torch.no_grad()
def losses(pipeline: Any, latents: Tensor, states: Tensor) -> dict[str, float]:
    """Return the mean squared error of v at each of `TIMESTEPS`."""
    signal, noise_level = signal_levels()
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
    found = {}
    for timestep in TIMESTEPS:
        a, b = signal[timestep], noise_level[timestep]
        errors = []
        for clean, random, text in zip(
            latents.split(50), noise.split(50), states.split(50), strict=True
        ):
            noisy = (a * clean + b * random).to(memory_format=torch.channels_last)
            with fast_floats():
                said = pipeline.unet(noisy, timestep, encoder_hidden_states=text).sample
            errors.append(F.mse_loss(said.float(), a * random - b * clean).item())
        found[str(timestep)] = round(float(np.mean(errors)), 4)
    return found


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    from diffusers import DiffusionPipeline

    from mezzotint.models.store.store import ModelStore

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("run", type=Path, help="folder with denoiser.pt")
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--scale", type=float, default=4.0)
    parser.add_argument("--varied", type=int, default=0, help="captions of several seeds")
    parser.add_argument("--judge", type=Path, default=HERE, help="folder of the judge")
    parser.add_argument("--weights", help="model by name or folder, in place of the run's")
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = options.weights or "plate"
    folder = base if Path(base).is_dir() else ModelStore().entry(base).path
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    result: dict[str, Any] = {"weights": base}
    if not options.weights:
        state = torch.load(options.run / "denoiser.pt", weights_only=True)
        pipeline.unet.load_state_dict(state["average"])
        result = {key: state[key] for key in ("step", "seen")}
        result["minutes"] = round(state["spent_s"] / 60, 1)
    pipeline.unet.to(memory_format=torch.channels_last)
    asked = json.loads((options.judge / CAPTIONS_FILE).read_text("utf-8"))
    captions = [row["caption"] for row in asked]
    pixels = to_pixels(real_pictures(options.data, asked))
    latents = torch.cat([pipeline.vae.encode(p).latent_dist.mode() for p in pixels.split(50)])
    states = torch.cat(
        [
            pipeline.encode_prompt(captions[k : k + 50], "cpu", 1, False)[0]
            for k in range(0, 500, 50)
        ]
    )
    result["loss"] = losses(pipeline, latents, states)
    judge, how = Judge(options.judge / EYES.name), {"steps": options.steps, "scale": options.scale}
    with fast_floats():
        pictures = draw(pipeline, captions[: options.captions], **how)
    found = judge.score(pictures, asked[: options.captions], among=captions)
    result |= {key: found[key] for key in KEYS}
    if options.varied:
        reference = Reference(options.judge / DISTANCES.name)
        result |= reference.score(judge.see(pictures)[0])
        several = list(reference.varied)[: options.varied]
        with fast_floats():
            drawn = draw(pipeline, [text for text in several for _ in range(SEEDS)], **how)
        seen = np.split(judge.see(drawn)[0], len(several))
        result |= reference.spread(dict(zip(several, seen, strict=True)))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
