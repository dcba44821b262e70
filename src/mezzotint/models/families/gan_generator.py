"""The generator of a GAN: what is written about it, and the network itself.

Three architectures are built from a configuration: DCGAN (arXiv:1511.06434, in the
layout of PyTorch's tutorial), a stack of residual blocks
(:mod:`mezzotint.models.families.gan_residual`) and a plain multilayer perceptron.

Dimensions: B rows, Z latent size, E class embedding size, H and W picture rows and
columns.
"""

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mezzotint.errors import CardError, InvalidRequest
from mezzotint.models.families.gan_residual import ResidualStack, residual_side
from mezzotint.models.parts import read_json
from mezzotint.plain import Checked, check_range, read

__all__ = ["CONFIG_FILE", "GanConfig", "Generator", "build_generator"]

CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GanConfig(Checked):
    """The content of a GAN folder's ``config.json``.

    Args:
        format: Always ``"mezzotint-gan"``.
        version: Version of the format, 1.
        architecture: ``"dcgan"``, ``"residual"`` or ``"mlp"``.
        latent_size: Length of the latent vector.
        image_size: Side of the square picture, pixels. For a DCGAN
            ``4 * 2**len(channels)``, for a residual stack half of that.
        image_channels: 1 (grey) or 3.
        channels: Widths of the hidden layers, first to last; of a residual stack
            those of its levels, from 4 px up.
        num_classes: Class labels, 0 for none.
        class_names: Names of the classes, or none.
        class_embedding_size: Length of the class vector that is put behind the
            latent vector; needed where there are classes.
        mapping_layers: Layers of a mapping network from z to w (arXiv:1812.04948,
            section 2), 0 for none; each keeps the latent size.
        batch_norm: Whether a batch normalisation follows each hidden layer; a
            residual stack has none.
        bias: Whether layers have a bias (a DCGAN has none by default, a residual
            stack always has).
        activation: Between the layers; ``"leaky_relu"`` in a residual stack.
        negative_slope: Slope of ``"leaky_relu"``.
        licence: SPDX id or a sentence.
        description: A sentence for people.
    """

    format: Literal["mezzotint-gan"] = "mezzotint-gan"
    version: Literal[1] = 1
    architecture: Literal["dcgan", "residual", "mlp"] = "dcgan"
    latent_size: int = 100
    image_size: int = 64
    image_channels: int = 3
    channels: tuple[int, ...] = (512, 256, 128, 64)
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    class_embedding_size: int = 0
    mapping_layers: int = 0
    batch_norm: bool = True
    bias: bool = False
    activation: Literal["relu", "leaky_relu"] = "relu"
    negative_slope: float = 0.2
    licence: str = "unknown"
    description: str = ""

    def _validate(self) -> None:
        check_range("latent_size", self.latent_size, 1, 16_384)
        check_range("image_size", self.image_size, 4, 2048, unit=" px")
        check_range("num_classes", self.num_classes, 0, 1_000_000)
        check_range("class_embedding_size", self.class_embedding_size, 0, 16_384)
        check_range("mapping_layers", self.mapping_layers, 0, 64)
        for width in self.channels:
            check_range("channels", width, 1, 16_384)
        if self.image_channels not in (1, 3):
            raise InvalidRequest(
                f"image_channels must be 1 or 3, got {self.image_channels}", field="image_channels"
            )
        if not self.channels:
            raise InvalidRequest("channels must name at least one layer", field="channels")
        side = 4 * 2 ** len(self.channels)
        if self.architecture == "dcgan" and self.image_size != side:
            raise InvalidRequest(
                f"a DCGAN with {len(self.channels)} hidden layers draws {side} px, "
                f"got image_size {self.image_size}",
                field="image_size",
            )
        if self.architecture == "residual":
            self._validate_residual()
        if bool(self.num_classes) != bool(self.class_embedding_size):
            raise InvalidRequest(
                "class_embedding_size belongs to num_classes, got "
                f"{self.class_embedding_size} for {self.num_classes} classes",
                field="class_embedding_size",
            )
        if self.class_names and len(self.class_names) != self.num_classes:
            raise InvalidRequest(
                f"class_names must name all {self.num_classes} classes, "
                f"got {len(self.class_names)} names",
                field="class_names",
            )

    def _validate_residual(self) -> None:
        side = residual_side(len(self.channels))
        if self.image_size != side:
            raise InvalidRequest(
                f"a residual generator with {len(self.channels)} levels draws {side} px, "
                f"got image_size {self.image_size}",
                field="image_size",
            )
        for field, value, needed in (
            ("batch_norm", self.batch_norm, False),
            ("bias", self.bias, True),
            ("activation", self.activation, "leaky_relu"),
        ):
            if value != needed:
                raise InvalidRequest(
                    f"{field} of a residual generator must be {json.dumps(needed)}, "
                    f"got {json.dumps(value)}",
                    field=field,
                )

    def to_plain(self) -> dict[str, Any]:
        """Return what stands in ``config.json``; every field, in order."""
        plain = asdict(self)
        plain["channels"], plain["class_names"] = list(self.channels), list(self.class_names)
        return plain

    @classmethod
    def load(cls, folder: Path) -> "GanConfig":
        """Read a GAN folder's configuration.

        Raises:
            CardError: If it is missing or cannot be understood.
        """
        path = folder / CONFIG_FILE
        try:
            return read(cls, read_json(path))
        except InvalidRequest as error:
            raise CardError(f"{path}: {error}") from None


class MappingNetwork(nn.Module):
    """A mapping network: z, brought to unit mean square, through layers to w. (B, Z) to (B, Z)."""

    def __init__(self, size: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(layers))

    def forward(self, latents: Tensor) -> Tensor:
        """Map latent vectors. Shape (B, Z) to (B, Z)."""
        latents = latents * (latents.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for layer in self.layers:
            latents = nn.functional.leaky_relu(layer(latents), 0.2)
        return latents


class Generator(nn.Module):
    """A generator with classes in front: (B, Z) and labels (B,) to (B, C, H, W).

    Args:
        config: What to build; weights are random until they are loaded.
    """

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.config = config
        inputs = config.latent_size + config.class_embedding_size
        if config.num_classes:
            table = torch.empty(config.num_classes, config.class_embedding_size)
            if not table.is_meta:  # there, drawing would load torch's compiler: seconds
                nn.init.normal_(table)
            classes = nn.Embedding.from_pretrained(table, freeze=False)  # pyright: ignore - untyped
            self.class_embedding = classes
        if config.mapping_layers:
            self.mapping = MappingNetwork(config.latent_size, config.mapping_layers)
        if config.architecture == "residual":
            self.main = ResidualStack(
                inputs,
                config.channels,
                image_channels=config.image_channels,
                slope=config.negative_slope,
            )
            return
        layers = _dcgan(config, inputs) if config.architecture == "dcgan" else _mlp(config, inputs)
        self.main = nn.Sequential(*layers)

    def forward(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Draw pictures as training sees them.

        Args:
            latents: Shape (B, Z).
            class_labels: Shape (B,), whole numbers; needed where there are classes.

        Returns:
            Shape (B, image_channels, H, W), in [-1, 1]; a residual stack may overshoot.
        """
        if self.config.mapping_layers:
            latents = self.mapping(latents)
        return self._paint(latents, class_labels)

    def draw(self, latents: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Draw pictures in [-1, 1] of vectors that are mapped already; shapes as before."""
        pictures = self._paint(latents, class_labels)
        return pictures.clamp(-1, 1) if self.config.architecture == "residual" else pictures

    def _paint(self, latents: Tensor, class_labels: Tensor | None) -> Tensor:
        if self.config.num_classes and class_labels is not None:
            latents = torch.cat([latents, self.class_embedding(class_labels)], dim=1)
        if self.config.architecture == "residual":
            return self.main(latents)
        if self.config.architecture == "dcgan":
            return self.main(latents[:, :, None, None])
        side = self.config.image_size
        return self.main(latents).reshape(-1, self.config.image_channels, side, side)


def build_generator(config: GanConfig) -> Generator:
    """Build a generator with random weights, for training or to load weights into."""
    return Generator(config)


def _activation(config: GanConfig) -> nn.Module:
    if config.activation == "leaky_relu":
        return nn.LeakyReLU(config.negative_slope, inplace=True)
    return nn.ReLU(inplace=True)


def _dcgan(config: GanConfig, inputs: int) -> list[nn.Module]:
    """List the layers of the tutorial's generator: 4x4, then doubled by every layer."""
    layers: list[nn.Module] = []
    widths = (inputs, *config.channels)
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        stride, padding = (1, 0) if number == 0 else (2, 1)
        layers.append(nn.ConvTranspose2d(before, after, 4, stride, padding, bias=config.bias))
        if config.batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers.append(_activation(config))
    last = nn.ConvTranspose2d(widths[-1], config.image_channels, 4, 2, 1, bias=config.bias)
    return [*layers, last, nn.Tanh()]


def _mlp(config: GanConfig, inputs: int) -> list[nn.Module]:
    """List the layers of a perceptron that ends in all pixels at once."""
    layers: list[nn.Module] = []
    widths = (inputs, *config.channels)
    for before, after in itertools.pairwise(widths):
        layers.append(nn.Linear(before, after, bias=config.bias))
        if config.batch_norm:
            layers.append(nn.BatchNorm1d(after))
        layers.append(_activation(config))
    pixels = config.image_channels * config.image_size**2
    return [*layers, nn.Linear(widths[-1], pixels, bias=config.bias), nn.Tanh()]
