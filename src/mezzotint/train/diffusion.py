"""Diffusion: a network learns to say what noise did to a sample.

In pixel space, in the latent space of an autoencoder, or over arrays; free,
steered by a class, or by a text. What fits a diffusers pipeline is written as
one; everything else is a run of :mod:`mezzotint.models.runs`.

Dimensions: B samples, C channels, T tokens.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mezzotint.models.base import Model
from mezzotint.models.runs import RUN_FILE, WEIGHTS_FILE, RunDescription, RunModel, call_network
from mezzotint.train.config import TrainConfig
from mezzotint.train.data import Dataset
from mezzotint.train.losses import (
    Mixture,
    Noising,
    loss_weight,
    pointwise_loss,
    scheduler_config,
    target_of,
)
from mezzotint.train.networks import build_network, network_kind
from mezzotint.train.tasks import Batch

__all__ = ["DiffusionTask"]


class DiffusionTask:
    """Trains a denoiser; see :class:`mezzotint.train.tasks.Task`.

    Args:
        config: The run.
        data: What is learned; its shape decides the network's.
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self.config, self._data = config, data
        self.noising = Noising(config.objective)
        self.latent_space = self._open_vae() if config.network.vae else None
        kind: Any = "latents" if self.latent_space is not None else data.kind
        shape = data.shape if self.latent_space is None else self.latent_space.shape_of(data.shape)
        chosen = network_kind(config, kind)
        self.num_classes = len(data.class_names) if config.conditioning.kind == "class" else 0
        self.text_side = self._open_text() if config.conditioning.kind == "text" else None
        network = build_network(
            config,
            chosen,
            shape,
            num_classes=self.num_classes,
            text_width=self.text_side.width if self.text_side else 0,
        )
        if config.loop.gradient_checkpointing and hasattr(network, "enable_gradient_checkpointing"):
            network.enable_gradient_checkpointing()
        self.modules = nn.ModuleDict({"network": network})
        if self.text_side is not None and self.text_side.learns:
            self.modules["text_encoder"] = self.text_side.encoder
        self.groups: Mapping[str, Sequence[str]] = {"denoiser": tuple(self.modules)}
        self.rates = {"denoiser": 1.0}
        self._takes_labels = self.num_classes > 0 or chosen == "dit"
        self.description = RunDescription(
            network=type(network).__name__,
            data=kind,
            shape=tuple(shape),
            scheduler=scheduler_config(config.objective),
            normalisation=data.normalisation,
            conditioning=config.conditioning.kind,
            num_classes=self.num_classes,
            class_names=data.class_names if self.num_classes else (),
            text_tokens=config.network.text_tokens,
            latent_factor=self.latent_space.factor if self.latent_space else 1,
            channels=config.data.channels,
            default_guidance_scale=3.0 if config.conditioning.kind != "none" else 1.0,
            licence=config.licence,
        )

    def _open_vae(self) -> Any:
        """Open the autoencoder that gives the latent space."""
        from mezzotint.train.latents import LatentSpace

        return LatentSpace(Path(self.config.network.vae))

    def _open_text(self) -> Any:
        """Open or build the text encoder."""
        from mezzotint.train.text import TextSide

        return TextSide(self.config, self._data.captions)

    def frozen(self) -> Sequence[nn.Module]:
        """Return the modules that only help."""
        helpers = [self.latent_space.vae] if self.latent_space is not None else []
        if self.text_side is not None and not self.text_side.learns:
            helpers.append(self.text_side.encoder)
        return helpers

    def loss(
        self,
        group: str,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted denoising error of a batch."""
        mixture = self.noising.draw(len(batch.samples), generator)
        return self._loss(networks, batch, mixture, generator, self.config.conditioning.dropout), {}

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return the error at evenly spaced noise levels."""
        mixture = self.noising.spaced(len(batch.samples))
        return self._loss(networks, batch, mixture, generator, 0.0)

    def _loss(
        self,
        networks: Mapping[str, Any],
        batch: Batch,
        mixture: Mixture,
        generator: torch.Generator,
        dropout: float,
    ) -> Tensor:
        clean = batch.samples
        if self.latent_space is not None:
            clean = self.latent_space.encode(clean, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        mixture = mixture.to(clean.device)
        steering = self._steer(networks, batch, generator, dropout)
        predicted = call_network(
            networks["network"],
            sample=mixture.mix(clean, noise),
            timestep=mixture.time,
            **steering,
        )
        target = target_of(self.config.objective.target, clean, noise, mixture)
        error = pointwise_loss(self.config.objective.loss, predicted, target)
        return (error * loss_weight(self.config.objective, mixture)).mean()

    def _steer(
        self,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
        dropout: float,
    ) -> dict[str, Tensor]:
        """Return labels or embeddings, some of them dropped."""
        rows, device = len(batch.samples), batch.samples.device
        dropped = torch.rand(rows, generator=generator) < dropout
        if self.text_side is not None:
            texts = [
                "" if gone else text
                for text, gone in zip(batch.captions, dropped.tolist(), strict=True)
            ]
            return {"prompt_embeds": self.text_side.embed(texts, networks, device)}
        if self._takes_labels:
            labels = torch.tensor(list(batch.labels) if self.num_classes else [0] * rows)
            if self.num_classes:
                labels = torch.where(dropped, torch.tensor(self.num_classes), labels)
            return {"class_labels": labels.to(device)}
        return {}

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def model(self, modules: nn.ModuleDict) -> Model:
        """Return the model to sample from."""
        from mezzotint.train.export import as_pipeline_model

        piped = as_pipeline_model(self, modules)
        if piped is not None:
            return piped
        parts: dict[str, Any] = {}
        if self.text_side is not None:
            encoder = modules["text_encoder"] if self.text_side.learns else self.text_side.encoder
            parts = {"tokenizer": self.text_side.tokenizer, "text_encoder": encoder}
        if self.latent_space is not None:
            parts["vae"] = copy.deepcopy(self.latent_space.vae)
        return RunModel(
            self.description, modules["network"], name=Path(self.config.output_dir).name, **parts
        )

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write the run as a model."""
        from mezzotint.train.export import export_pipeline, save_part

        about = {**self.description.to_plain(), "training": dict(training)}
        if not export_pipeline(self, folder, modules):
            save_network(modules["network"], folder / "network")
            if self.text_side is not None:
                encoder = (
                    modules["text_encoder"] if self.text_side.learns else self.text_side.encoder
                )
                save_part(encoder, folder / "text_encoder")
                save_part(self.text_side.tokenizer, folder / "tokenizer")
            if self.latent_space is not None:
                self.latent_space.vae.save_pretrained(str(folder / "vae"))
        else:
            about["family"] = "pipeline"
        (folder / RUN_FILE).write_text(json.dumps(about, indent=1), "utf-8")


def save_network(network: Any, folder: Path) -> None:
    """Write a network's configuration and weights."""
    if hasattr(network, "save_pretrained"):
        network.save_pretrained(str(folder))
        return
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(network.config, indent=1), "utf-8")
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
