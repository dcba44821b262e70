"""Diffusion: a network learns to say what noise did to a sample.

In pixel space, in the latent space of an autoencoder, or over arrays; free,
steered by a class, or by a text. What fits a diffusers pipeline is written as
one; everything else is a run of :mod:`mezzotint.models.families.runs`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.losses import Mixture
from mezzotint.train.tasks.base import Batch
from mezzotint.train.tasks.export import export_ground
from mezzotint.train.tasks.ground import fresh_ground, open_ground

__all__ = ["DiffusionTask"]


class DiffusionTask:
    """Trains a denoiser; see :class:`mezzotint.train.tasks.base.Task`.

    Args:
        config: The run; with ``base`` it goes on from that model's weights.
        data: What is learned; its shape decides a fresh network's.
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self._config = config
        self.ground = open_ground(config, data) if config.base else fresh_ground(config, data)
        network: Any = self.ground.network
        if config.loop.gradient_checkpointing and hasattr(network, "enable_gradient_checkpointing"):
            network.enable_gradient_checkpointing()
        self.modules = nn.ModuleDict({"network": network})
        text = self.ground.text
        if text is not None and text.learns:
            self.modules["text_encoder"] = text.encoder
        self.groups: Mapping[str, Sequence[str]] = {"denoiser": tuple(self.modules)}
        self.rates: Mapping[str, float] = {"denoiser": 1.0}

    def frozen(self) -> Sequence[nn.Module]:
        """Return the modules that only help."""
        return self.ground.helpers

    def loss(
        self,
        group: str,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted denoising error of a batch."""
        mixture = self.ground.noising.draw(len(batch.samples), generator)
        return self._loss(
            networks, batch, mixture, generator, self._config.conditioning.dropout
        ), {}

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return the error at evenly spaced noise levels."""
        mixture = self.ground.noising.spaced(len(batch.samples))
        return self._loss(networks, batch, mixture, generator, 0.0)

    def _loss(
        self,
        networks: Mapping[str, Any],
        batch: Batch,
        mixture: Mixture,
        generator: torch.Generator,
        dropout: float,
    ) -> Tensor:
        ground = self.ground
        clean = ground.clean(batch.samples, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        mixture = mixture.to(clean.device)
        steering = ground.steer(networks, batch, generator, dropout)
        predicted = ground.predict(networks["network"], clean, noise, mixture, steering)
        return ground.noising.error(predicted, clean, noise, mixture).mean()

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def write_model(
        self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
    ) -> None:
        """Write the run as a model."""
        export_ground(self.ground, folder, modules, training)

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write the run folder's content."""
        self.write_model(folder, modules, training)
