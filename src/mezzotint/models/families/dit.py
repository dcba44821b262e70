"""DiT: class-conditional transformers over latents.

Dimensions: R rows, C latent channels, h and w latent rows and columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest
from mezzotint.models.base import Conditioning, Prompt
from mezzotint.models.families.autoencoder import Autoencoder
from mezzotint.models.families.common import (
    default_size,
    drawing_defaults,
    part_of,
    prediction_type,
    sample_size,
)
from mezzotint.models.families.latent import LatentModel
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule

__all__ = ["DiTModel", "call_dit"]


def call_dit(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a DiTTransformer2DModel with named tensors."""
    output = module(
        inputs["sample"],
        timestep=inputs["timestep"],
        class_labels=inputs["class_labels"],
        return_dict=False,
    )
    return (output[0],)


class DiTModel(LatentModel):
    """A DiT with its autoencoder; the label after the last class means "no class".

    Args:
        parts: The pieces; ``id2label`` of the pipeline names the classes.
        placement: Where and in which type networks compute.
    """

    def __init__(self, parts: Parts, placement: Placement) -> None:
        transformer = part_of(parts, "transformer")
        self.networks = {"denoiser": TorchNetwork.of(transformer, call_dit, placement)}
        self._autoencoder = Autoencoder(part_of(parts, "vae"), self.networks, placement)
        self._null = int(transformer.config.get("num_embeds_ada_norm") or 1000)
        labels: dict[Any, Any] = dict(parts.config.get("id2label") or {})
        names = {int(key): str(value).split(",")[0] for key, value in labels.items()}
        is_whole = sorted(names) == list(range(self._null))
        scale = self._autoencoder.scale
        self.spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family="dit",
            prediction_type=prediction_type(parts.scheduler),
            scheduler_config=dict(parts.scheduler),
            latent_channels=self._autoencoder.channels,
            latent_scale=scale,
            size_multiple=scale * int(transformer.config.get("patch_size", 2)),
            fixed_size=True,
            takes_prompt=False,
            takes_negative_prompt=False,
            num_classes=self._null,
            class_names=tuple(names[k] for k in range(self._null)) if is_whole else (),
            token_limit=0,
            limits=("there is no prompt: latent.class_label says what to draw",),
            **drawing_defaults(
                parts,
                scheduler="ddim",
                default_size=default_size(sample_size(transformer.config, 32), scale),
                default_steps=50,
                default_guidance_scale=4.0,
            ),
        )
        self.denoiser = NetworkDenoiser(
            self._predict, noise_schedule(parts.scheduler), self.spec.prediction_type
        )

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into its class label; the negative half has none."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> Conditioning:
        label = prompt.class_label
        if prompt.negative or label is None:
            label = self._null
        elif not 0 <= label < self._null:
            raise InvalidRequest(
                f"latent.class_label must be 0 to {self._null - 1}, got {label}",
                field="latent.class_label",
                value=label,
                allowed=f"0 to {self._null - 1}",
            )
        return Conditioning({"class_labels": torch.tensor([label])})
