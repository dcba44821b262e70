"""Registry: the task of a run, by its kind."""

import torch

from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.networks import seeded
from mezzotint.train.tasks.base import Task

__all__ = ["create_task"]


def create_task(config: TrainConfig, data: Dataset, generator: torch.Generator) -> Task:
    """Build the task of a run; weights are drawn from ``generator``."""
    with seeded(generator):
        if config.kind == "diffusion":
            from mezzotint.train.tasks.diffusion import DiffusionTask

            return DiffusionTask(config, data)
        if config.kind == "autoencoder":
            from mezzotint.train.tasks.autoencoder import AutoencoderTask

            return AutoencoderTask(config, data)
        if config.kind == "gan":
            from mezzotint.train.tasks.adversarial import AdversarialTask

            return AdversarialTask(config, data)
        if config.kind == "lora":
            from mezzotint.train.tasks.lora import LoraTask

            return LoraTask(config, data)
        from mezzotint.train.tasks.distill import DistillTask

        return DistillTask(config, data)
