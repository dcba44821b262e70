"""Adversarial training: a generator against a discriminator, in two losses.

``dcgan`` is the non-saturating loss (arXiv:1406.2661; arXiv:1511.06434).
``relativistic`` compares each real picture with a fake one and keeps the
discriminator smooth with gradient penalties on both (arXiv:2501.05441), which
converges where the first one cycles. Both see the same augmented pictures, so a
small data set cannot be learned by heart (arXiv:2006.10738). The networks are those of DCGAN or
residual ones (:mod:`mezzotint.train.tasks.residual_gan`).

Dimensions: B pictures, Z latent size, C channels, H and W pixels.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.gan import WEIGHTS_FILE, GanConfig, build_generator, write_gan
from mezzotint.models.networks import use_channels_last
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.tasks.base import Batch
from mezzotint.train.tasks.residual_gan import SLOPE, ResidualDiscriminator, start_weights

__all__ = [
    "AdversarialTask",
    "Augmentation",
    "Discriminator",
    "gradient_penalty",
    "relativistic_losses",
]

DISCRIMINATOR_FILE = "discriminator.safetensors"


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


def _judge_pairs(
    judge: nn.Module, real: Tensor, fake: Tensor, labels: Tensor | None, some: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Judge pairs, and measure the penalties of real and fake on the first ``some`` of them.

    Returns:
        Verdicts on real and on fake pictures, each (B,), and the sum of both penalties.
    """

    def pair(rows: slice) -> tuple[Tensor, Tensor | None]:
        both = torch.cat([real[rows], fake[rows]])
        return both, None if labels is None else labels[rows].repeat(2)

    watched, classes = pair(slice(some))
    watched = watched.detach().requires_grad_(True)
    verdicts = judge(watched, classes)
    penalty = 2 * gradient_penalty(verdicts, watched)  # a mean over both kinds
    on_real, on_fake = verdicts.chunk(2)
    if some < len(real):
        more_real, more_fake = judge(*pair(slice(some, None))).chunk(2)
        on_real, on_fake = torch.cat([on_real, more_real]), torch.cat([on_fake, more_fake])
    return on_real, on_fake, penalty


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


def _describe(config: TrainConfig, side: int, channels: int, names: tuple[str, ...]) -> GanConfig:
    """Describe the generator of a run on pictures of C channels and a class for each name.

    Raises:
        InvalidRequest: If the widths are not those of the levels of such pictures.
    """
    options = config.adversarial
    levels = int(math.log2(side // 4))
    shared: dict[str, Any] = {
        "latent_size": options.latent_size,
        "image_size": side,
        "image_channels": channels,
        "num_classes": len(names),
        "class_names": names,
        "class_embedding_size": options.latent_size if names else 0,
        "mapping_layers": options.mapping_layers,
        "licence": config.licence,
    }
    base = options.base_channels
    if options.architecture == "dcgan":
        widths = tuple(base * 2 ** min(k, 4) for k in reversed(range(levels)))
        return GanConfig(channels=widths, **shared)
    widths = options.channels or tuple(base * 2 ** min(k, 4) for k in reversed(range(levels + 1)))
    if len(widths) != levels + 1:
        raise InvalidRequest(
            f"adversarial.channels needs {levels + 1} widths for pictures of {side} px "
            f"(4 px and every doubling), got {len(widths)}",
            field="adversarial.channels",
        )
    return GanConfig(
        architecture="residual", channels=widths, batch_norm=False, bias=True,
        activation="leaky_relu", negative_slope=SLOPE, **shared,
    )  # fmt: skip


def _start_from(folder: Path, modules: nn.ModuleDict) -> None:
    """Take the weights of both networks from the folder of another run.

    Raises:
        InvalidRequest: If it is no folder of a GAN run, or of other networks.
    """
    files = {"generator": WEIGHTS_FILE, "discriminator": DISCRIMINATOR_FILE}
    for name, file in files.items():
        try:
            modules[name].load_state_dict(load_file(folder / file))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise InvalidRequest(
                f"base {folder} must be the folder of a GAN run with the same networks: "
                f"{file} cannot be taken ({str(error).splitlines()[0]})",
                field="base",
                value=str(folder),
            ) from None


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
        names = data.class_names if self._classes else ()
        self.gan = _describe(config, side, data.shape[0], names)
        generator = build_generator(self.gan)
        if options.architecture == "residual":
            judge: nn.Module = ResidualDiscriminator(
                data.shape[0], self.gan.channels[:-1], self._classes
            )
            start_weights(generator)
            start_weights(judge)
            for network in (generator, judge):  # a sixth less time on a CPU
                use_channels_last(network)
        else:
            judge = Discriminator(data.shape[0], side, options.base_channels, self._classes)
        self.modules = nn.ModuleDict({"generator": generator, "discriminator": judge})
        if config.base:
            _start_from(Path(config.base), self.modules)
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
            fake = networks["generator"](latents, labels)
            error = self._generator_loss(judge, change(real), change(fake), labels)
            if not options.spread:
                return error, {}
            some = max(1, round(options.spread_share * rows))
            others = torch.randn(some, options.latent_size, generator=generator).to(device)
            again = networks["generator"](others, None if labels is None else labels[:some])
            apart = (fake[:some] - again).abs().flatten(1).mean(1)
            wanted = F.relu(options.spread_bound - apart).mean()
            return error + options.spread * wanted, {"apart": apart.mean().detach()}
        with torch.no_grad():
            fake = networks["generator"](latents, labels)
        if options.loss == "dcgan":
            on_real, on_fake = judge(change(real), labels), judge(change(fake), labels)
            return (F.softplus(-on_real) + F.softplus(on_fake)).mean(), {}
        some = max(1, round(options.penalty_share * rows))
        on_real, on_fake, penalty = _judge_pairs(judge, change(real), change(fake), labels, some)
        error = relativistic_losses(on_real, on_fake)[0]
        return error + 0.5 * options.penalty * penalty, {"penalty": penalty.detach()}

    def _generator_loss(
        self, judge: nn.Module, real: Tensor, fake: Tensor, labels: Tensor | None
    ) -> Tensor:
        """Return the generator's loss; the discriminator passes gradients on and keeps none."""
        weights = {name: weight.detach() for name, weight in judge.named_parameters()}
        on_fake = functional_call(judge, weights, (fake, labels))
        if self._config.adversarial.loss == "dcgan":
            return F.softplus(-on_fake).mean()
        with torch.no_grad():
            on_real = judge(real, labels)
        return relativistic_losses(on_real, on_fake)[1]

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
        """Write the run folder's content; the discriminator too, for runs that start from it."""
        self.write_model(folder, modules, training)
        state = {k: v.contiguous() for k, v in modules["discriminator"].state_dict().items()}
        save_file(state, folder / DISCRIMINATOR_FILE)
