"""Train the small autoencoder whose latents the text-to-picture model learns.

Usage: ``python autoencoder.py DATA RUN --minutes 18``. A fully convolutional
`AutoencoderKL` (eight times smaller, eight channels, no attention) learns from
64 px crops of composed 128 px pictures: crops of a quarter of the area see four
times as many pictures in the same time, and nothing in the network spans more.

Loss: absolute error, half the squared error, absolute error of 4 px averages
(colours) and of the horizontal and vertical differences (edges), and a light pull
of the posterior to N(0, 1). Started again with the same RUN, it goes on from the
weights there.

Afterwards `standardise` folds each latent channel's mean and deviation into the
1x1 convolutions on either side of the latents, so that ``scaling_factor`` is 1
and latents have zero mean and unit variance by construction. With ``--decoder-only``
the latents stay what they are and the decoder alone learns on, from whole pictures:
that can be done after, or while, another network learns the latents.

Dimensions: B pictures, pixels (B, 3, H, W) in [-1, 1], latents (B, 8, H/8, W/8).
"""

import argparse
import json
import math
import os
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from compose import compose, random_composition
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from parallel import Clock, average_gradients, run_workers, save_checkpoint
from precision import fast_floats
from torch import Tensor
from torch.nn import functional as F

CROP_PX = 64
BANK_SIZE = 7000
STYLE_SHARES = {"fluent-3d": 0.55, "fluent-flat": 0.2, "noto": 0.15, "twemoji": 0.1}
KL_WEIGHT = 5e-4
EMA_DECAY = 0.998


def build_autoencoder() -> AutoencoderKL:
    """Return the autoencoder with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def to_pixels(pictures: NDArray[np.uint8]) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float in [-1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def build_bank(data: Path, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Compose the pictures to crop from, styles in the shares above."""
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    styles = np.array([row["style"] for row in json.loads((data / "pictures.json").read_text())])
    members = {style: np.flatnonzero(styles == style) for style in STYLE_SHARES}
    drawn = rng.choice(list(STYLE_SHARES), size=BANK_SIZE, p=list(STYLE_SHARES.values()))
    return np.stack(
        [
            compose(np.asarray(pictures[rng.choice(members[style])]), random_composition(rng))
            for style in drawn
        ]
    )


def draw_crops(bank: NDArray[np.uint8], count: int, side: int, rng: np.random.Generator) -> Tensor:
    """Cut random square crops, seldom empty ones."""
    crops = []
    while len(crops) < count:
        top, left = rng.integers(0, bank.shape[1] - side + 1, size=2)
        crop = bank[rng.integers(len(bank)), top : top + side, left : left + side]
        if crop.std(axis=(0, 1)).max() > 8 or rng.random() < 0.05:
            crops.append(crop)
    return to_pixels(np.stack(crops))


def edges(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the horizontal and the vertical differences."""
    return pixels.diff(dim=-1), pixels.diff(dim=-2)


def reconstruction_loss(output: Tensor, pixels: Tensor) -> Tensor:
    """Return absolute + half squared + coarse colour + edge error."""
    loss = F.l1_loss(output, pixels) + 0.5 * F.mse_loss(output, pixels)
    loss = loss + F.l1_loss(F.avg_pool2d(output, 4), F.avg_pool2d(pixels, 4))
    for ours, theirs in zip(edges(output), edges(pixels), strict=True):
        loss = loss + F.l1_loss(ours, theirs)
    return loss


@torch.no_grad()
def standardise(model: AutoencoderKL, pixels: Tensor) -> None:
    """Fold the latents' per-channel mean and deviation into the 1x1 convolutions."""
    means = torch.cat([model.encode(part).latent_dist.mean for part in pixels.split(64)])
    mean, std = means.mean(dim=(0, 2, 3)), means.std(dim=(0, 2, 3))
    before, after = model.quant_conv, model.post_quant_conv
    channels = len(mean)
    before.weight[:channels] /= std[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / std
    before.bias[channels:] -= 2 * std.log()  # log-variances of the scaled latents
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= std[None, :, None, None]


@torch.no_grad()
def psnr(model: AutoencoderKL, pixels: Tensor) -> float:
    """Return the peak signal-to-noise ratio of reconstructions, in decibels."""
    errors = [
        F.mse_loss(model.decode(model.encode(part).latent_dist.mode()).sample.clamp(-1, 1), part)
        for part in pixels.split(32)
    ]
    return 10 * math.log10(4 / torch.stack(errors).mean().item())


def train(rank: int, workers: int, data: Path, run: Path, options: dict[str, float]) -> None:
    """Train one process's share for the given time; save standardised average weights."""
    torch.manual_seed(0)  # noqa: TID251 - the weights must start equal in all processes
    seconds, batch_size = 60 * options["minutes"], int(options["batch_size"]) // workers
    bank = build_bank(data, np.random.default_rng(options["seed"]))
    held_out, bank = to_pixels(bank[:128]), bank[128:]
    model = build_autoencoder()
    path = run / "autoencoder.pt"
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    model.to(memory_format=torch.channels_last)
    average = deepcopy(model).requires_grad_(requires_grad=False)
    side = CROP_PX
    if options["decoder_only"]:
        side = bank.shape[1]
        model.encoder.requires_grad_(requires_grad=False)
        model.quant_conv.requires_grad_(requires_grad=False)
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    theirs = [p for p in model.parameters() if p.requires_grad]
    ours = [
        p for p, q in zip(average.parameters(), model.parameters(), strict=True) if q.requires_grad
    ]
    buffer = torch.empty(sum(p.numel() for p in theirs))
    rng = np.random.default_rng([int(options["seed"]), rank])
    torch.manual_seed(rank)  # noqa: TID251 - the posterior's noise, different in each process
    clock, step, spent_s, losses = Clock(), 0, 0.0, []
    while spent_s < seconds:
        fall = max(0.02, math.cos(spent_s / seconds * math.pi / 2))
        for group in optimizer.param_groups:
            group["lr"] = options["learning_rate"] * min(1, step / 100) * fall
        pixels = draw_crops(bank, batch_size, side, rng).to(memory_format=torch.channels_last)
        with fast_floats():
            posterior = model.encode(pixels).latent_dist
            output = model.decode(posterior.sample()).sample
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        loss = reconstruction_loss(output.float(), pixels) + KL_WEIGHT * kl
        optimizer.zero_grad()
        loss.backward()
        average_gradients(theirs, buffer)
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        optimizer.step()
        step += 1
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(ours, [p.detach() for p in theirs], 1 - decay)
        losses.append(loss.item())
        spent_s = clock.read()
        if rank == 0 and step % 100 == 0:
            speed = step * batch_size * workers / spent_s
            print(f"step {step} at {spent_s / 60:.1f} min loss {np.mean(losses):.4f} "
                  f"kl {kl.item():.3f} {speed:.1f} crops/s", flush=True)  # fmt: skip
            losses.clear()
        if rank == 0 and step % 1000 == 0:
            print(f"psnr {psnr(average, held_out[:32]):.2f} dB", flush=True)
            save_checkpoint(path, average.state_dict())
    if rank == 0:
        if not options["decoder_only"]:
            standardise(average, to_pixels(bank[:1024]))
        save_checkpoint(path, average.state_dict())
        crops = step * batch_size * workers
        print(f"{crops} crops, psnr {psnr(average, held_out):.2f} dB, done", flush=True)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("run", type=Path, help="folder for weights")
    parser.add_argument("--minutes", type=float, default=18)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument(
        "--decoder-only", action="store_true", help="leave latents as they are; whole pictures"
    )
    arguments = parser.parse_args()
    arguments.run.mkdir(parents=True, exist_ok=True)
    options = {
        "minutes": arguments.minutes,
        "batch_size": arguments.batch_size,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
        "decoder_only": arguments.decoder_only,
    }
    run_workers(train, arguments.workers, arguments.data, arguments.run, options)


if __name__ == "__main__":
    main()
