"""LoRA: a small change of a large model, learned from few pictures.

The base stays as it is; low-rank changes are put beside chosen layers by peft
and are the only weights that learn, are averaged and go into checkpoints. The
run folder holds ``pytorch_lora_weights.safetensors`` in the usual naming and,
with ``lora.merge``, the whole model with the change merged in.

With ``loop.shard`` the base and the change are cut over the processes of a run; what is
written is the same.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.runs import RUN_FILE
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.losses import Mixture
from mezzotint.train.sharding import shard
from mezzotint.train.tasks.base import Batch
from mezzotint.train.tasks.export import export_ground
from mezzotint.train.tasks.ground import open_ground
from mezzotint.train.tasks.served import ServedGround

__all__ = ["LORA_FILE", "LoraTask"]

LORA_FILE = "pytorch_lora_weights.safetensors"


class LoraTask:
    """Trains a low-rank change; see :class:`mezzotint.train.tasks.base.Task`.

    Raises:
        InvalidRequest: If the base cannot be changed, or has none of the layers.
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self._config = config
        self.ground = open_ground(config, data)
        options = config.lora
        network: Any = self.ground.network.requires_grad_(False)
        if config.loop.gradient_checkpointing and hasattr(network, "enable_gradient_checkpointing"):
            network.enable_gradient_checkpointing()
        # A large base is read again when it is written, a small one kept beside.
        self._original = None if isinstance(self.ground, ServedGround) else copy.deepcopy(network)
        self._scale = (options.alpha or options.rank) / options.rank
        try:
            inject_adapter_in_model(
                LoraConfig(
                    r=options.rank,
                    lora_alpha=options.alpha or options.rank,  # pyright: ignore[reportArgumentType] - whole there
                    lora_dropout=options.dropout,
                    target_modules=list(options.modules),
                ),
                network,
            )
        except ValueError:
            kinds = (nn.Linear, nn.Conv2d)
            names = {
                n.rpartition(".")[2] for n, m in network.named_modules() if isinstance(m, kinds)
            }
            raise InvalidRequest(
                f"lora.modules {', '.join(options.modules)} are not in {config.base}, whose layers "
                f"end in {', '.join(sorted(n for n in names if not n.isdigit()))}",
                field="lora.modules",
            ) from None
        for value in network.parameters():
            if value.requires_grad:
                value.data = value.data.float()  # small steps are lost in bfloat16
        self._is_sharded = config.loop.shard and shard(network)
        learned = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._names = {name.replace(".", "/"): name for name in learned}
        weights = nn.ParameterDict({name.replace(".", "/"): p for name, p in learned.items()})
        self.modules = nn.ModuleDict({"lora": weights})
        self.groups: Mapping[str, Sequence[str]] = {"lora": ("lora",)}
        self.rates: Mapping[str, float] = {"lora": 1.0}

    def frozen(self) -> Sequence[nn.Module]:
        """Return the modules that only help, the base among them."""
        return self.ground.helpers

    def loss(
        self,
        group: str,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted denoising error of a batch."""
        self.ground.network.train(self._config.lora.dropout > 0)
        mixture = self.ground.noising.draw(len(batch.samples), generator)
        return self._loss(
            networks, batch, mixture, generator, self._config.conditioning.dropout
        ), {}

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return the error at evenly spaced noise levels."""
        self.ground.network.eval()
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
        network = ground.network
        if not self._is_sharded:  # shares are where they belong
            network.to(batch.samples.device)
        clean = ground.clean(batch.samples, generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        mixture = mixture.to(clean.device)
        steering = ground.steer(networks, batch, generator, dropout)
        predicted = ground.predict(network, clean, noise, mixture, steering)
        return ground.noising.error(predicted, clean, noise, mixture).mean()

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    @torch.no_grad()
    def merged(self, modules: nn.ModuleDict) -> nn.ModuleDict:
        """Return the base with the learned change added to its weights."""
        ground = self.ground
        if isinstance(ground, ServedGround):
            network = ground.fresh()
        else:
            assert self._original is not None  # noqa: S101 - kept for every other ground
            network = copy.deepcopy(self._original)
        state = network.state_dict()
        for layer, (down, up) in self._pairs(modules).items():
            weight = state[f"{layer}.weight"]
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
            weight.add_(change.to(weight))
        return nn.ModuleDict({"network": network})

    def _pairs(self, modules: nn.ModuleDict) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the two factors of each changed layer, the scale in the second."""
        weights = dict(modules["lora"].named_parameters())
        state = {self._names[name]: p.detach().cpu() for name, p in weights.items()}
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, down in state.items():
            if ".lora_A." in name:
                up = state[name.replace(".lora_A.", ".lora_B.")]
                pairs[name.partition(".lora_A.")[0]] = (down, up * self._scale)
        return pairs

    def write_model(
        self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
    ) -> None:
        """Write the base with the change merged in."""
        merged = self.merged(modules)
        if isinstance(self.ground, ServedGround):
            self.ground.write(folder, merged["network"], training)
        else:
            export_ground(self.ground, folder, merged, training)

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write the change, and the whole model if asked."""
        if self._config.lora.merge:
            self.write_model(folder, modules, training)
        else:
            about = {"format": 1, "family": "lora", "base": self._config.base, "training": training}
            (folder / RUN_FILE).write_text(json.dumps(about, indent=1), "utf-8")
        role = "transformer" if "Transformer" in self.ground.description.network else "unet"
        state: dict[str, Tensor] = {}
        for layer, (down, up) in self._pairs(modules).items():
            state[f"{role}.{layer}.lora_A.weight"] = down.contiguous()
            state[f"{role}.{layer}.lora_B.weight"] = up.contiguous()
        save_file(state, folder / LORA_FILE, metadata={"format": "pt"})
