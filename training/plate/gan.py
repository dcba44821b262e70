"""Train the class-conditional GAN of emoji-like pictures.

Usage: ``python gan.py DATA RUN --minutes 20``, then ``python gan.py DATA RUN
--export OUT``. A DCGAN generator (latents of 100 numbers beside a learnt vector
for each of the nine emoji groups) against a spectrally normalised projection
discriminator, with the hinge loss and differentiable augmentation: 1,900 pictures
are too few to go without (Zhao et al. 2020, arXiv:2006.10738). What is exported
is the generator's running average, its batch statistics measured anew, since
averaged weights do not have averaged statistics.

Dimensions: B pictures, pixels (B, 3, 64, 64) in [-1, 1], latents (B, 100).
"""

import argparse
import json
import os
import shutil
import time
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from compose import Composition, compose
from data import GROUPS
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from mezzotint.models.families.gan import GanConfig, build_generator, write_gan

CONFIG = GanConfig(
    channels=(256, 128, 64, 32),
    num_classes=len(GROUPS),
    class_names=GROUPS,
    class_embedding_size=32,
    licence="Apache-2.0; learnt from Fluent emoji (MIT)",
    description="Emoji-like pictures of nine groups",
)
STYLE = "fluent-3d"
EMA_DECAY = 0.998
CHECKPOINT_EVERY_S = 120


def new_generator() -> nn.Module:
    """Return the generator with random weights as DCGANs start."""
    generator = build_generator(CONFIG)
    for module in generator.modules():
        if isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
    return generator


class Discriminator(nn.Module):
    """Scores pictures, given the group that they should be of."""

    def __init__(self) -> None:
        """Build the layers."""
        super().__init__()
        widths = [CONFIG.image_channels, 32, 64, 128, 256]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [
                spectral_norm(nn.Conv2d(narrow, wide, 4, 2, 1)),
                nn.LeakyReLU(0.1),
            ]
        layers += [spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, 1, 1)), nn.LeakyReLU(0.1)]
        self.main = nn.Sequential(*layers)
        self.score = spectral_norm(nn.Linear(widths[-1], 1))
        self.class_embedding = spectral_norm(nn.Embedding(CONFIG.num_classes, widths[-1]))

    def forward(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Return one score a picture, higher for real."""
        features = self.main(pixels).sum(dim=(2, 3)) / 4
        matched = (self.class_embedding(labels) * features).sum(dim=1)
        return self.score(features)[:, 0] + matched


def augment(pixels: Tensor) -> Tensor:
    """Shift brightness, saturation, contrast and place, and cut a square out of each picture."""
    batch, _, size, _ = pixels.shape
    draw = torch.rand(3, batch, 1, 1, 1)
    pixels = pixels + (draw[0] - 0.5) * 0.4
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = (pixels - grey) * (0.5 + draw[1]) + grey
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * (0.75 + 0.5 * draw[2]) + mean
    reach = size // 8
    shifts = torch.randint(0, 2 * reach + 1, (2, batch, 1))
    padded = F.pad(pixels, (reach,) * 4, value=1.0)
    places = torch.arange(size)
    rows, columns = shifts[0] + places, shifts[1] + places
    index = torch.arange(batch)[:, None, None]
    pixels = padded.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    pixels = pixels.permute(0, 3, 1, 2)
    hole = 3 * size // 8
    corners = torch.randint(-hole // 2, size - hole // 2, (2, batch, 1))
    inside_rows = (places >= corners[0]) & (places < corners[0] + hole)
    inside_columns = (places >= corners[1]) & (places < corners[1] + hole)
    return pixels * ~(inside_rows[:, None, :, None] & inside_columns[:, None, None, :])


def load_pictures(data: Path) -> tuple[Tensor, Tensor]:
    """Return pixels (N, 3, 64, 64) uint8, on white, and group numbers (N,)."""
    pictures = np.load(data / "pictures.npy", mmap_mode="r")
    entries = json.loads((data / "pictures.json").read_text("utf-8"))
    chosen = [i for i, entry in enumerate(entries) if entry["style"] == STYLE]
    side = CONFIG.image_size
    drawn = [
        np.asarray(
            Image.fromarray(compose(np.asarray(pictures[i]), Composition())).resize(
                (side, side), Image.Resampling.BOX
            )
        )
        for i in chosen
    ]
    labels = torch.tensor([entries[i]["group"] for i in chosen])
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).contiguous(), labels


def train(data: Path, run: Path, *, minutes: float, batch_size: int) -> None:
    """Train for the given time, going on from a checkpoint if there is one."""
    pictures, groups = load_pictures(data)
    counts = torch.bincount(groups, minlength=len(GROUPS))
    print(
        f"{len(pictures)} pictures: {dict(zip(GROUPS, counts.tolist(), strict=True))}", flush=True
    )
    weights = (counts.float() ** -0.5)[groups]
    torch.manual_seed(0)  # noqa: TID251 - training, not pictures
    generator, discriminator = new_generator(), Discriminator()
    for module in (generator, discriminator):
        module.to(memory_format=torch.channels_last)
    average = deepcopy(generator).requires_grad_(requires_grad=False)
    betas = (0.0, 0.99)
    optimizers = [
        torch.optim.Adam(generator.parameters(), lr=2e-4, betas=betas, fused=True),
        torch.optim.Adam(discriminator.parameters(), lr=4e-4, betas=betas, fused=True),
    ]
    step, spent_s, path = 0, 0.0, run / "gan.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        for module, name in (
            (generator, "generator"),
            (discriminator, "discriminator"),
            (average, "average"),
        ):
            module.load_state_dict(state[name])
        step, spent_s = state["step"], state["spent_s"]
        torch.manual_seed(step)  # noqa: TID251 - training, not pictures
    begin = time.monotonic() - spent_s
    saved_s = spent_s
    while spent_s < 60 * minutes:
        fall = 0.02 + 0.98 * min(1.0, 2 - 2 * spent_s / (60 * minutes))
        for optimizer, rate in zip(optimizers, (2e-4, 4e-4), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * fall
        drawn = torch.multinomial(weights, batch_size, replacement=True)
        labels = groups[drawn]
        real = pictures[drawn].float().div_(127.5).sub_(1)
        flipped = torch.rand(batch_size, 1, 1, 1) < 0.5
        real = torch.where(flipped, real.flip(3), real)
        latents = torch.randn(batch_size, CONFIG.latent_size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fake = generator(latents, labels)
        both = torch.cat([augment(real), augment(fake.detach().float())])
        both = both.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = discriminator(both, labels.repeat(2)).float()
        real_scores, fake_scores = scores.chunk(2)
        loss = F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        discriminator.requires_grad_(requires_grad=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            augmented = augment(fake.float()).to(memory_format=torch.channels_last)
            generator_loss = -discriminator(augmented, labels).float().mean()
        optimizers[0].zero_grad()
        generator_loss.backward()
        optimizers[0].step()
        discriminator.requires_grad_(requires_grad=True)
        step += 1
        spent_s = time.monotonic() - begin
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            list(average.parameters()), [p.detach() for p in generator.parameters()], 1 - decay
        )
        if step % 100 == 0:
            print(f"step {step} at {spent_s / 60:.1f} min d {loss.item():.3f} "
                  f"g {generator_loss.item():.3f}", flush=True)  # fmt: skip
        if spent_s - saved_s > CHECKPOINT_EVERY_S or spent_s >= 60 * minutes:
            saved_s = spent_s
            torch.save(
                {
                    "generator": generator.state_dict(),
                    "discriminator": discriminator.state_dict(),
                    "average": average.state_dict(),
                    "step": step,
                    "seen": step * batch_size,
                    "spent_s": spent_s,
                },
                path.with_suffix(".part"),
            )
            os.replace(path.with_suffix(".part"), path)
    print(f"{step * batch_size} samples, done", flush=True)


@torch.no_grad()
def measure_statistics(generator: nn.Module, labels: Tensor) -> None:
    """Measure the batch statistics of the averaged weights."""
    torch.manual_seed(0)  # noqa: TID251 - a measurement over random latents
    norms = [m for m in generator.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    generator.train()
    for _ in range(16):
        drawn = labels[torch.randint(len(labels), (128,))]
        generator(torch.randn(128, CONFIG.latent_size), drawn)
    generator.eval()


def export(data: Path, run: Path, out: Path, card: Path) -> None:
    """Write the GAN folder."""
    _, groups = load_pictures(data)
    generator = build_generator(CONFIG)
    checkpoint = torch.load(run / "gan.pt", weights_only=True)
    generator.load_state_dict(checkpoint["average"])
    counts = torch.bincount(groups, minlength=len(GROUPS)).float()
    drawn = torch.multinomial(counts**0.5, 4096, replacement=True)
    measure_statistics(generator, drawn)
    state = generator.state_dict()
    half = {name: tensor.half() for name, tensor in state.items() if tensor.is_floating_point()}
    write_gan(out, CONFIG, half)
    shutil.copy(card, out / "model_card.md")
    parameters = sum(p.numel() for p in generator.parameters())
    print(f"{checkpoint['seen']} samples seen, {parameters} parameters")


def main() -> None:
    """Train or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with pictures.npy")
    parser.add_argument("run", type=Path, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--export", type=Path, help="write the GAN folder here and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.export:
        card = Path(__file__).parent / "plate_gan_card.md"
        export(arguments.data, arguments.run, arguments.export, card)
        return
    train(arguments.data, arguments.run, minutes=arguments.minutes, batch_size=arguments.batch_size)


if __name__ == "__main__":
    main()
