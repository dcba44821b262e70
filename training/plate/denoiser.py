"""Train the U-Net that turns noise into latents, guided by a caption.

Usage: ``python denoiser.py RUN --minutes 80``. Reads what ``dataset.py``
wrote and never runs another network, so all compute goes to the U-Net. Stopped
at any moment, it goes on from its last checkpoint when started again with the
same RUN; ``--minutes`` counts time spent training, over all starts. ``--base`` names a
folder of finished weights (``unet`` of an exported model) that the first start takes,
and ``--hold`` keeps the learning rate where it is, so that such a run has no end to plan
for: the mean of the weights (``--ema``) stands in for the rate's fall at any moment.
``--balance`` draws what is rare more often: things by the weight of all their pictures to that
power, whose shares of one thing stay. ``--precision`` follows the processor unless it is told.

The network predicts v (Salimans and Ho 2022, arXiv:2202.00512) under the linear
schedule 1e-4 ... 0.02, whose last step keeps 0.6 % of the signal: sampling starts
from noise that says nothing about brightness, so flat backgrounds come out as
asked. The loss is the plain squared error of v, which weighs late and early
steps alike; weighting by min(SNR, 5) would hardly look at the noisiest steps,
where the background is decided.

Dimensions: B images, latents (B, 8, 16, 16), caption states (B, T, 384).
"""

import argparse
import json
import math
import os
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from parallel import Clock, average_gradients, run_workers, save_checkpoint
from precision import fast_floats
from torch import Tensor
from torch.nn import functional as F

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 1e-4, 0.02
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
WARM_UP_STEPS = 150
DECAY_FROM = 0.6  # share of the time after which the learning rate falls
CHECKPOINT_EVERY_S = 120


def build_denoiser() -> UNet2DConditionModel:
    """Return the U-Net with random weights."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 256),
        layers_per_block=1,
        cross_attention_dim=384,
        attention_head_dim=(2, 4, 8),  # counts heads, in spite of its name
        norm_num_groups=16,
        use_linear_projection=True,
    )


def signal_levels() -> tuple[Tensor, Tensor]:
    """Return the square roots of alpha-bar and of 1 - alpha-bar. Shape (1000,)."""
    betas = torch.linspace(BETA_START, BETA_END, NUM_TIMESTEPS, dtype=torch.float64)
    cumulative = (1 - betas).cumprod(0)
    return cumulative.sqrt().float(), (1 - cumulative).sqrt().float()


class Batches:
    """Draws training batches: latents by weight, one of their captions each."""

    def __init__(self, run: Path, *, seed: int, balance: float = 1.0) -> None:
        """Read the arrays.

        Args:
            run: Folder that ``dataset.py`` filled.
            seed: Seed of the draws.
            balance: Power of the things' weights: 1 draws by weight, 0 all things alike.
        """
        items = json.loads((run / "items.json").read_text("utf-8"))
        weights = np.array([item["weight"] for item in items])
        things = np.unique([item["label"] for item in items], return_inverse=True)[1]
        masses = np.bincount(things, weights)[things]
        weights = weights / masses * masses**balance
        self._captions = [np.array(item["captions"]) for item in items]
        self._cumulative = np.cumsum(weights / weights.sum())
        self._latents: NDArray[np.float16] = np.load(run / "latents.npy", mmap_mode="r")
        self._states: NDArray[np.float16] = np.load(run / "embeddings.npy", mmap_mode="r")
        self._rng = np.random.default_rng(seed)

    def draw(self, size: int) -> tuple[Tensor, Tensor]:
        """Draw latents (B, 8, 16, 16) and caption states (B, T, 384), float32."""
        drawn = np.searchsorted(self._cumulative, self._rng.random(size)).clip(
            max=len(self._captions) - 1
        )
        captions = np.array([self._rng.choice(self._captions[i]) for i in drawn])
        captions[self._rng.random(size) < CAPTION_DROPOUT] = 0
        latents = torch.from_numpy(self._latents[drawn]).float()
        return latents, torch.from_numpy(self._states[captions]).float()


def learning_rate_factor(progress: float, step: int, *, hold: bool = False) -> float:
    """Rise in a few steps, stay, then fall along a cosine to a hundredth unless held."""
    fall = 0.0 if hold else max(0.0, (progress - DECAY_FROM) / (1 - DECAY_FROM))
    return min(1.0, step / WARM_UP_STEPS) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * fall))


def draw_timesteps(size: int, centre: float | None, generator: torch.Generator) -> Tensor:
    """Draw timesteps, evenly or by a logit-normal law around a share of the schedule.

    Args:
        size: How many.
        centre: Median timestep as a share of the schedule, None for evenly.
        generator: Source of the draws.

    Returns:
        Shape (size,), int64.

    Source: Esser et al. 2024 (arXiv:2403.03206), equation 19, with deviation 1. A tenth is
    drawn evenly, so that no noise level is forgotten.
    """
    even = torch.randint(0, NUM_TIMESTEPS, (size,), generator=generator)
    if centre is None:
        return even
    normal = torch.randn(size, generator=generator) + math.log(centre / (1 - centre))
    chosen = (normal.sigmoid() * NUM_TIMESTEPS).long().clamp(max=NUM_TIMESTEPS - 1)
    return torch.where(torch.rand(size, generator=generator) < 0.1, even, chosen)


def train(rank: int, workers: int, run: Path, options: dict[str, Any]) -> None:
    """Train one process's share until the given time is spent."""
    torch.manual_seed(0)  # noqa: TID251 - the weights must start equal in all processes
    seconds, batch_size = 60 * options["minutes"], int(options["batch_size"]) // workers
    model = build_denoiser()
    if options["base"]:
        model.load_state_dict(UNet2DConditionModel.from_pretrained(options["base"]).state_dict())
    model = model.to(memory_format=torch.channels_last)
    average = deepcopy(model).requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=options["learning_rate"],
        betas=(0.9, 0.98),
        weight_decay=0.01,
        fused=True,
    )
    step, seen, spent_s, path = 0, 0, 0.0, run / "denoiser.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, spent_s = state["step"], state["seen"], state["spent_s"]
    generator = torch.Generator().manual_seed(step * workers + rank)
    batches = Batches(run, seed=step * workers + rank, balance=options["balance"])
    signal, noise_level = signal_levels()
    ours, theirs = list(average.parameters()), list(model.parameters())
    buffer = torch.empty(sum(p.numel() for p in theirs))
    losses: list[float] = []
    clock = Clock(spent_s)
    saved_s, logged_s, logged_step = spent_s, spent_s, step
    while spent_s < seconds:
        rate = options["learning_rate"] * learning_rate_factor(
            spent_s / seconds, step, hold=options["hold"]
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        latents, states = batches.draw(batch_size)
        timesteps = draw_timesteps(batch_size, options["centre"], generator)
        a, b = signal[timesteps].view(-1, 1, 1, 1), noise_level[timesteps].view(-1, 1, 1, 1)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = (a * latents + b * noise).to(memory_format=torch.channels_last)
        with fast_floats(options["precision"]):
            predicted = model(noisy, timesteps, encoder_hidden_states=states).sample
        loss = F.mse_loss(predicted.float(), a * noise - b * latents)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(theirs, buffer)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()
        step, seen = step + 1, seen + batch_size * workers
        decay = min(options["ema"], (1 + step) / (10 + step))
        torch._foreach_lerp_(ours, [p.detach() for p in theirs], 1 - decay)
        losses.append(loss.item())
        spent_s = clock.read()
        if rank:
            continue
        if step % 50 == 0:
            speed = batch_size * workers * (step - logged_step) / (spent_s - logged_s)
            logged_s, logged_step = spent_s, step
            print(f"step {step} at {spent_s / 60:.1f} min loss {np.mean(losses):.4f} "
                  f"rate {rate:.1e} {speed:.1f} samples/s", flush=True)  # fmt: skip
            losses.clear()
        if spent_s - saved_s > CHECKPOINT_EVERY_S or spent_s >= seconds:
            saved_s = spent_s
            state = {
                "model": model.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "seen": seen,
                "spent_s": spent_s,
            }
            save_checkpoint(path, state)
    if rank == 0:
        print(f"{seen} samples, done", flush=True)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder that dataset.py filled")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--batch-size", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--base", type=Path, help="folder of weights to start from")
    parser.add_argument("--hold", action="store_true", help="keep the learning rate")
    parser.add_argument("--ema", type=float, default=EMA_DECAY, help="decay of the mean")
    parser.add_argument("--balance", type=float, default=1.0, help="power of the weights")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--centre", type=float, help="median timestep, as a share; evenly without")
    options = vars(parser.parse_args())
    run_workers(train, options.pop("workers"), options.pop("run"), options)


if __name__ == "__main__":
    main()
