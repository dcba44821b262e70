"""Adversarial training: a generator against a discriminator, in two losses.

``dcgan`` is the non-saturating loss (arXiv:1406.2661; arXiv:1511.06434).
``relativistic`` compares each real picture with a fake one and keeps the
discriminator smooth with gradient penalties on both (arXiv:2501.05441), which
converges where the first one cycles. Both see the same augmented pictures, so a
small data set cannot be learned by heart (arXiv:2006.10738).

Dimensions: B pictures, Z latent size, C channels, H and W pixels.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.gan import GanConfig, build_generator, write_gan
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.tasks.base import Batch

__all__ = [
    "AdversarialTask",
    "Augmentation",
    "Discriminator",
    "gradient_penalty",
    "relativistic_losses",
]


class Discriminator(nn.Module):
    """Judges pictures: strided convolutions down to 4 px, then one number.

    Args:
        channels: C of the pictures.
        size: Side of the square picture, 4 times a power of two.
        base: Width of the level nearest the pixels; doubled with each halving.
        num_classes: Classes; the judgement is projected on the class (arXiv:1802.05637).
    """

    def __init__(self, channels: int, size: int, base: int, num_classes: int = 0) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, base, 3, 1, 1), nn.LeakyReLU(0.2)]
        width = base
        for _ in range(int(math.log2(size // 4))):
            wide = min(2 * width, 16 * base)
            layers += [nn.Conv2d(width, wide, 4, 2, 1), nn.GroupNorm(math.gcd(8, wide), wide)]
            layers.append(nn.LeakyReLU(0.2))
            width = wide
        self.body = nn.Sequential(*layers)
        self.judge = nn.Linear(width * 16, 1)
        self.classes = nn.Embedding(num_classes, width * 16) if num_classes else None

    def forward(self, pictures: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge pictures. (B, C, H, W) -> (B,); higher is more real."""
        features = self.body(pictures).flatten(1)
        verdict = self.judge(features)[:, 0]
        if self.classes is not None and labels is not None:
            scale = features.shape[1] ** -0.5
            verdict = verdict + (self.classes(labels) * features).sum(1) * scale
        return verdict


def relativistic_losses(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses of discriminator and generator from paired verdicts.

    ``softplus(-(real - fake))`` for the discriminator and with the sign turned
    for the generator. Verdicts of shape (B,).
    """
    return F.softplus(fake - real).mean(), F.softplus(real - fake).mean()


def gradient_penalty(verdicts: Tensor, pictures: Tensor) -> Tensor:
    """Return the mean squared norm of the gradient of verdicts by pictures. A scalar."""
    (gradient,) = torch.autograd.grad(verdicts.sum(), pictures, create_graph=True)
    return gradient.float().flatten(1).square().sum(1).mean()


class Augmentation:
    """Differentiable changes: mirror, translate, brightness, saturation, cut-out.

    Drawn once per batch of rows, so that the same draw can be put on real and
    fake pictures.

    Args:
        rows: Pictures.
        probability: Of each change for each picture.
        generator: Where the draws come from.
    """

    def __init__(self, rows: int, probability: float, generator: torch.Generator) -> None:
        def chosen() -> Tensor:
            return (torch.rand(rows, generator=generator) < probability).float()

        def uniform() -> Tensor:
            return 2 * torch.rand(rows, generator=generator) - 1

        self.mirror = chosen() * (uniform() > 0)
        self.shift = torch.stack([uniform(), uniform()], 1) * 0.125 * chosen()[:, None]
        self.brightness = 0.5 * uniform() * chosen()
        self.saturation = 1 + uniform() * chosen()
        self.hole = torch.stack([uniform(), uniform()], 1)
        self.hole_side = 0.25 * chosen()

    def __call__(self, pictures: Tensor) -> Tensor:
        """Change pictures. Shape (B, C, H, W), kept."""
        device = pictures.device
        rows = len(pictures)

        def wide(values: Tensor) -> Tensor:
            return values.to(device).reshape(-1, 1, 1, 1)

        theta = torch.zeros(rows, 2, 3)
        theta[:, 0, 0] = 1 - 2 * self.mirror
        theta[:, 1, 1] = 1
        theta[:, :, 2] = 2 * self.shift
        grid = F.affine_grid(theta.to(device), list(pictures.shape), align_corners=False)
        moved = F.grid_sample(
            pictures, grid.to(pictures.dtype), padding_mode="reflection", align_corners=False
        )
        mean = moved.mean(1, keepdim=True)
        moved = mean + (moved - mean) * wide(self.saturation) + wide(self.brightness)
        y = torch.linspace(-1, 1, pictures.shape[2], device=device).reshape(1, 1, -1, 1)
        x = torch.linspace(-1, 1, pictures.shape[3], device=device).reshape(1, 1, 1, -1)
        inside = (y - wide(self.hole[:, 0])).abs() < wide(self.hole_side)
        inside = inside & ((x - wide(self.hole[:, 1])).abs() < wide(self.hole_side))
        return moved * (~inside).to(moved.dtype)


class AdversarialTask:
    """Trains a GAN; see :class:`mezzotint.train.tasks.base.Task`.

    Raises:
        InvalidRequest: If the data are no square pictures of a side 8, 16, 32, ...
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        side = data.shape[-1]
        if data.kind != "pixels" or side != data.shape[-2] or side < 8 or side & (side - 1):
            raise InvalidRequest(
                'kind "gan" needs square pictures of a side that is a power of two from 8 px, '
                f"got {data.kind} of shape {'x'.join(str(n) for n in data.shape)}",
                field="data.resolution",
            )
        self._config = config
        options = config.adversarial
        self._classes = len(data.class_names) if config.conditioning.kind == "class" else 0
        levels = int(math.log2(side // 4))
        self.gan = GanConfig(
            latent_size=options.latent_size,
            image_size=side,
            image_channels=data.shape[0],
            channels=tuple(options.base_channels * 2 ** min(k, 4) for k in reversed(range(levels))),
            num_classes=self._classes,
            class_names=data.class_names if self._classes else (),
            class_embedding_size=options.latent_size if self._classes else 0,
            licence=config.licence,
        )
        self.modules = nn.ModuleDict(
            {
                "generator": build_generator(self.gan),
                "discriminator": Discriminator(
                    data.shape[0], side, options.base_channels, self._classes
                ),
            }
        )
        self.groups: Mapping[str, Sequence[str]] = {
            "discriminator": ("discriminator",),
            "generator": ("generator",),
        }
        self.rates: Mapping[str, float] = {
            "discriminator": options.discriminator_rate,
            "generator": 1.0,
        }

    def frozen(self) -> Sequence[nn.Module]:
        """Nothing only helps."""
        return ()

    def loss(
        self,
        group: str,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the discriminator or of the generator."""
        options = self._config.adversarial
        real, rows = batch.samples, len(batch.samples)
        device = real.device
        labels = torch.tensor(list(batch.labels)).to(device) if self._classes else None
        latents = torch.randn(rows, options.latent_size, generator=generator).to(device)
        change = Augmentation(rows, options.augment, generator)
        judge = networks["discriminator"]
        if group == "generator":
            fake_verdict = judge(change(networks["generator"](latents, labels)), labels)
            if options.loss == "dcgan":
                return F.softplus(-fake_verdict).mean(), {}
            with torch.no_grad():
                real_verdict = judge(change(real), labels)
            return relativistic_losses(real_verdict, fake_verdict)[1], {}
        with torch.no_grad():
            fake = networks["generator"](latents, labels)
        seen_real, seen_fake = change(real), change(fake)
        if options.loss == "dcgan":
            error = F.softplus(-judge(seen_real, labels)) + F.softplus(judge(seen_fake, labels))
            return error.mean(), {}
        seen_real = seen_real.detach().requires_grad_(True)
        seen_fake = seen_fake.detach().requires_grad_(True)
        on_real, on_fake = judge(seen_real, labels), judge(seen_fake, labels)
        error = relativistic_losses(on_real, on_fake)[0]
        penalty = gradient_penalty(on_real, seen_real) + gradient_penalty(on_fake, seen_fake)
        return error + 0.5 * options.penalty * penalty, {"penalty": penalty.detach()}

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return how well the discriminator tells held-out pictures from fakes."""
        rows, device = len(batch.samples), batch.samples.device
        labels = torch.tensor(list(batch.labels)).to(device) if self._classes else None
        latents = torch.randn(rows, self.gan.latent_size, generator=generator).to(device)
        judge = networks["discriminator"]
        fake = judge(networks["generator"](latents, labels), labels)
        return relativistic_losses(judge(batch.samples, labels), fake)[0]

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def write_model(
        self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
    ) -> None:
        """Write the generator as a GAN folder."""
        write_gan(folder, self.gan, modules["generator"].state_dict())
        (folder / "training.json").write_text(json.dumps(training, indent=1), "utf-8")

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write the run folder's content."""
        self.write_model(folder, modules, training)
