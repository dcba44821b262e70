"""Train the head of the built-in aesthetic gate: whole pictures above spoilt ones.

Usage: ``python train.py PICTURES WORK OUT.safetensors``. PICTURES holds the folders ``photos``
(photographs) and ``drawn`` (pictures that the built-in model drew well). There are no votes
of people in this: what is learned is to tell how far a picture is from one that was not
spoilt. The log beside this file has the figures.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from degrade import spoil
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mezzotint.gates.statistics import COUNT, measure

GOOD, WORST = 7.5, 1.2
SIDES = (64, 96, 128, 160, 224, 320)
HIDDEN = 32


def crop(image: Image.Image, draw: np.random.Generator) -> Image.Image:
    """Cut out a square of at least a third of the picture and make it one of the sizes."""
    side = int(min(image.size) * draw.uniform(0.35, 1.0))
    left, top = (int(draw.integers(0, length - side + 1)) for length in image.size)
    size = int(draw.choice([s for s in SIDES if s <= side] or [side]))
    cut = image.crop((left, top, left + side, top + side))
    return cut.resize((size, size), Image.Resampling.LANCZOS)


def samples(job: tuple[Path, int, int]) -> list[tuple[NDArray[np.float64], float, int]]:
    """Return statistics and points of a picture as it is, and spoilt in ways drawn by lot."""
    path, number, rounds = job
    draw = np.random.default_rng([number, rounds])
    image = Image.open(path).convert("RGB")
    found = []
    for _ in range(rounds):
        whole = image if min(image.size) <= 160 and draw.random() < 0.5 else crop(image, draw)
        found.append((measure(np.asarray(whole)), GOOD, number))
        for ways in (1, 1, 1, 2):
            spoilt, lost, _ = spoil(whole, draw, ways)
            found.append((measure(np.asarray(spoilt)), max(WORST, GOOD - lost), number))
    return found


def nothing(draw: np.random.Generator) -> NDArray[np.uint8]:
    """Return a picture of nothing: one colour, a ramp, or noise alone."""
    side = int(draw.choice(SIDES))
    flat = np.broadcast_to(draw.uniform(0, 255, 3), (side, side, 3)).astype(np.float64)
    kind = int(draw.integers(4))
    if kind == 1:
        flat = flat * np.linspace(draw.uniform(0, 1), 1, side)[:, None, None]
    if kind == 2:
        flat = draw.uniform(0, 255, (side, side, 3))
    if kind == 3:
        flat = flat + draw.normal(0, draw.uniform(2, 60), (side, side, 3))
    return np.clip(flat, 0, 255).astype(np.uint8)


def gather(pictures: Path, work: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure everything, once."""
    kept = work / "samples.npz"
    if not kept.exists():
        photos = sorted((pictures / "photos").iterdir())
        drawn = sorted((pictures / "drawn").iterdir())
        jobs = [(p, k, 30) for k, p in enumerate(photos)]
        jobs += [(p, 1000 + k, 4) for k, p in enumerate(drawn)]
        with ProcessPoolExecutor(2) as pool:
            found = [sample for some in pool.map(samples, jobs) for sample in some]
        draw = np.random.default_rng(9)
        found += [(measure(nothing(draw)), WORST, 5000) for _ in range(150)]
        work.mkdir(parents=True, exist_ok=True)
        np.savez(kept, x=np.array([f[0] for f in found]), y=np.array([f[1] for f in found]),
                 group=np.array([f[2] for f in found]))  # fmt: skip
    stored = np.load(kept)
    return stored["x"], stored["y"]


def fit(x: torch.Tensor, y: torch.Tensor) -> nn.Sequential:
    """Learn points from statistics (standardised) by their distance and by their order."""
    draw = torch.Generator().manual_seed(3)
    head = nn.Sequential(nn.Linear(COUNT, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    for layer in (head[0], head[2]):
        nn.init.normal_(layer.weight, 0, layer.weight.shape[1] ** -0.5, generator=draw)
        nn.init.zeros_(layer.bias)
    step = torch.optim.AdamW(head.parameters(), lr=3e-3, weight_decay=0.05)
    steps = 4000
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(step, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,), generator=draw)
        shaken = x[rows] + 0.15 * torch.randn(len(rows), COUNT, generator=draw)
        made = points(head(shaken).squeeze(1))
        gap = y[rows][:, None] - y[rows][None]
        order = torch.relu(0.4 - (made[:, None] - made[None])) * (gap > 0.8)
        loss = nn.functional.smooth_l1_loss(made, y[rows]) + order.mean()
        step.zero_grad()
        loss.backward()
        step.step()
        decay.step()
    return head.eval()


def points(value: torch.Tensor) -> torch.Tensor:
    """Bring the head's number to the gate's scale of 1 to 10."""
    return 1 + 9 * torch.sigmoid(value)


def main() -> None:
    """Train and write the head."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    x, y = gather(given.pictures, given.work)
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    standard = torch.tensor((x - mean) / deviation, dtype=torch.float32).clamp(-4, 4)
    head = fit(standard, torch.tensor(y, dtype=torch.float32))
    with torch.no_grad():
        made = points(head(standard).squeeze(1)).numpy()
    print(f"{len(x)} pictures, mean error {np.abs(made - y).mean():.2f} of 10")
    save_file(
        {
            "mean": torch.tensor(mean, dtype=torch.float32),
            "deviation": torch.tensor(deviation, dtype=torch.float32),
            "hidden.weight": head[0].weight.detach(),
            "hidden.bias": head[0].bias.detach(),
            "out.weight": head[2].weight.detach(),
            "out.bias": head[2].bias.detach(),
        },
        given.out,
    )


if __name__ == "__main__":
    main()
