"""Tasks: what a step of training is, for each kind of run.

A task owns the modules that learn, grouped by optimiser, and answers with the
loss of a batch. The trainer owns everything else: order, steps, precision,
state. So diffusion, autoencoders, GANs, LoRA and distillation share one loop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Task"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples with what steers them.

    Args:
        samples: Shape (B, ...), float32, on the device.
        labels: Class of each, empty without classes.
        captions: Caption of each, empty without captions.
    """

    samples: Tensor
    labels: Sequence[int] = ()
    captions: Sequence[str] = ()


class Task(Protocol):
    """What is trained.

    Attributes:
        modules: Everything that learns or is averaged; its state is the checkpoint's.
        groups: Names of the optimisers in the order of a step, with the names of
            the modules each one moves.
        rates: Learning rate of each group relative to the configured one.
        compiled: Names of modules that may be compiled.
    """

    modules: nn.ModuleDict
    groups: Mapping[str, Sequence[str]]
    rates: Mapping[str, float]

    def loss(
        self, group: str, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a group on a batch and further figures worth a line.

        Args:
            group: Which optimiser will step.
            networks: The modules to call, wrapped for devices and compiled.
            batch: The samples.
            generator: The CPU generator of this batch.
        """
        ...

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return the loss on held-out samples, without luck in the noise levels."""
        ...

    def after_step(self, step: int) -> None:
        """Do what follows an optimiser step (target networks)."""
        ...

    def frozen(self) -> Sequence[nn.Module]:
        """Return modules that only help; the trainer moves them to the device."""
        ...

    def write_model(
        self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
    ) -> None:
        """Write what is sampled from, as a model of its own, into an empty folder."""
        ...

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write everything that the run folder shall hold into an empty folder."""
        ...
