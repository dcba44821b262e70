"""Unconditional U-Nets in pixel space (DDPM, DDIM pipelines).

Latents are the picture itself in [-1, 1]; a class-conditional U-Net takes its
class label.

Dimensions: R rows, C picture channels, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest, WorkFailed
from mezzotint.models.base import Conditioning, Model, Prompt, Report
from mezzotint.models.families.common import (
    default_size,
    drawing_defaults,
    part_of,
    prediction_type,
    sample_size,
)
from mezzotint.models.finite import rows_not_finite
from mezzotint.models.networks import Placement, TorchNetwork
from mezzotint.models.parts import Parts
from mezzotint.models.spec import ModelSpec
from mezzotint.sampling.denoiser import NetworkDenoiser
from mezzotint.sampling.schedules import noise_schedule
from mezzotint.types import Size

__all__ = ["PixelUNetModel", "call_unet"]


def call_unet(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Call a UNet2DModel with named tensors."""
    labels = inputs.get("class_labels")
    options = {} if labels is None else {"class_labels": labels}
    return (module(inputs["sample"], inputs["timestep"], return_dict=False, **options)[0],)


class PixelUNetModel(Model):
    """A U-Net that denoises pictures.

    Args:
        parts: The pieces: ``unet`` alone.
        placement: Where and in which type the network computes.
    """

    def __init__(self, parts: Parts, placement: Placement) -> None:
        unet = part_of(parts, "unet")
        self.networks = {"denoiser": TorchNetwork.of(unet, call_unet, placement)}
        rows_columns = sample_size(unet.config, 32)
        levels = len(unet.config.get("block_out_channels") or (0,) * 4)
        self._channels = int(unet.config.get("in_channels", 3))
        classes = int(unet.config.get("num_class_embeds") or 0)
        size = default_size(rows_columns, 1)
        self.spec = ModelSpec(
            name=parts.name,
            digest=parts.digest,
            path=parts.path,
            family="unconditional",
            prediction_type=prediction_type(parts.scheduler),
            scheduler_config=dict(parts.scheduler),
            latent_channels=self._channels,
            latent_scale=1,
            size_multiple=2 ** (levels - 1),
            min_size_px=2 ** (levels - 1),
            max_size_px=4 * max(size),
            takes_prompt=False,
            takes_negative_prompt=False,
            takes_guidance=False,
            num_classes=classes,
            token_limit=0,
            limits=("there is no prompt and no guidance",),
            **drawing_defaults(
                parts,
                scheduler="ddpm",
                default_size=size,
                default_steps=50 if parts.pipeline == "DDIMPipeline" else 250,
                default_guidance_scale=1.0,
            ),
        )
        self.denoiser = NetworkDenoiser(
            self._predict, noise_schedule(parts.scheduler), self.spec.prediction_type
        )

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return (C, H, W)."""
        return (self._channels, size.height, size.width)

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        """Turn each prompt into its class label, or nothing."""
        return [self._encode(prompt) for prompt in prompts]

    def _encode(self, prompt: Prompt) -> Conditioning:
        classes = self.spec.num_classes
        if not classes:
            if prompt.class_label is not None:
                raise InvalidRequest(
                    f"model {self.spec.name} has no classes", field="latent.class_label"
                )
            return Conditioning()
        label = prompt.class_label or 0
        if not 0 <= label < classes:
            raise InvalidRequest(
                f"latent.class_label must be 0 to {classes - 1}, got {label}",
                field="latent.class_label",
                value=label,
                allowed=f"0 to {classes - 1}",
            )
        return Conditioning({"class_labels": torch.tensor([label])})

    def _predict(
        self, latents: Tensor, timestep: Tensor, conditioning: Conditioning | None
    ) -> Tensor:
        inputs = dict(conditioning) if conditioning is not None else {}
        return self.networks["denoiser"](sample=latents, timestep=timestep, **inputs)[0]

    def decode(
        self,
        latents: Tensor,
        conditioning: Conditioning | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Return the pictures that the latents are, grey ones in three channels."""
        if bad := rows_not_finite(latents):
            raise WorkFailed(f"the model made no finite picture (row {bad[0]} of {len(latents)})")
        images = latents.float().clamp(-1, 1)
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]

    def encode_image(
        self, images: Tensor, generators: Sequence[torch.Generator | None] | None = None
    ) -> Tensor:
        """Return the pictures themselves; see :meth:`Model.encode_image`."""
        return images.mean(1, keepdim=True) if self._channels == 1 else images.float()

    def preview_matrix(self) -> Tensor:
        """Return the identity: latents are the picture."""
        if self._channels == 1:
            return torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
        return torch.eye(self._channels + 1, 3)
