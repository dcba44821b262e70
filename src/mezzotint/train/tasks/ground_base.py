"""Ground: the network with all that stands around it.

Diffusion, LoRA and distillation differ in what learns; what a network is told,
in which space it works and which noise it knows is the same for all of them
and lives here.

Dimensions: B samples, C channels, T tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.models.families.runs import RunDescription, call_network
from mezzotint.train.data.latents import LatentSpace
from mezzotint.train.data.text import TextSide
from mezzotint.train.losses import Mixture, Noising
from mezzotint.train.tasks.base import Batch

__all__ = ["Ground"]


@dataclass(slots=True)
class Ground:
    """A network and its surroundings.

    Args:
        description: What it is, as written into ``mezzotint_run.json``.
        network: The network.
        noising: Noise levels and target that it was or will be trained with.
        text: Text side, or None.
        latents: Latent space, or None.
    """

    description: RunDescription
    network: nn.Module
    noising: Noising
    text: TextSide | None = None
    latents: LatentSpace | None = None

    @property
    def helpers(self) -> list[nn.Module]:
        """Modules that only help: the autoencoder and a frozen text encoder."""
        found: list[nn.Module] = [self.latents.vae] if self.latents is not None else []
        if self.text is not None and not self.text.learns:
            found.append(self.text.encoder)
        return found

    def clean(self, samples: Tensor, generator: torch.Generator) -> Tensor:
        """Return samples in the space that the network works in."""
        return samples if self.latents is None else self.latents.encode(samples, generator)

    def steer(
        self,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
        dropout: float,
    ) -> dict[str, Tensor]:
        """Return labels or embeddings, a fraction of them dropped."""
        rows, device = len(batch.samples), batch.samples.device
        dropped = torch.rand(rows, generator=generator) < dropout
        if self.text is not None:
            pairs = zip(batch.captions, dropped, strict=True)
            texts = ["" if gone else text for text, gone in pairs]
            return {"prompt_embeds": self.text.embed(texts, networks, device)}
        about = self.description
        if about.conditioning == "class":
            labels = torch.tensor(list(batch.labels))
            labels = torch.where(dropped, torch.tensor(about.num_classes), labels)
            return {"class_labels": labels.to(device)}
        if about.network == "DiTTransformer2DModel":
            return {"class_labels": torch.zeros(rows, dtype=torch.long, device=device)}
        return {}

    def unsteered(
        self, networks: Mapping[str, Any], rows: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Return what the network is told where guidance compares with nothing."""
        nothing = Batch(torch.zeros(rows, 1, device=device), [0] * rows, [""] * rows)
        return self.steer(networks, nothing, torch.Generator().manual_seed(0), 1.1)

    def predict(
        self, network: Any, clean: Tensor, noise: Tensor, mixture: Mixture, steering: Any
    ) -> Tensor:
        """Return what a network says about a noisy sample. Shape (B, ...)."""
        noisy = mixture.mix(clean, noise)
        return call_network(network, sample=noisy, timestep=mixture.time, **steering)
