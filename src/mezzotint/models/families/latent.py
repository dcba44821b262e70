"""Latent models: what every family over an autoencoder's latents does in the same way.

Dimensions: B rows, C latent channels, h and w latent rows and columns.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from mezzotint.models.base import Conditioning, Model, Report
from mezzotint.models.families.autoencoder import (
    PREVIEW_ROLE,
    Autoencoder,
    fit_preview,
    read_preview,
)
from mezzotint.types import Size

__all__ = ["LatentModel"]


class LatentModel(Model):
    """A denoiser between the two ends of an autoencoder.

    A family sets ``networks``, ``spec``, ``denoiser`` and ``_autoencoder``, and says
    how prompts become conditionings.
    """

    _autoencoder: Autoencoder

    def latent_shape(self, size: Size) -> tuple[int, ...]:
        """Return (C, h, w)."""
        scale = self.spec.latent_scale
        return (self.spec.latent_channels, size.height // scale, size.width // scale)

    def _predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Ask the network; the family's denoiser makes an estimate of the answer."""
        return self.networks["denoiser"](sample=latents, timestep=timestep, **conditioning)[0]

    def decode(
        self,
        latents: Tensor,
        conditioning: Conditioning | None = None,
        *,
        report: Report | None = None,
    ) -> Tensor:
        """Decode with the autoencoder; see :meth:`Model.decode`."""
        return self._autoencoder.decode(latents, report)

    def encode_image(
        self, images: Tensor, generators: Sequence[torch.Generator | None] | None = None
    ) -> Tensor:
        """Encode with the autoencoder; see :meth:`Model.encode_image`."""
        return self._autoencoder.encode(images, generators)

    @property
    def latent_offset(self) -> float:
        """What the autoencoder's shift takes off; see :meth:`Model.latent_offset`."""
        return self._autoencoder.offset

    def cut_autoencoder(
        self,
        *,
        slicing: bool | None = None,
        tiling: bool | None = None,
        circular: bool | None = None,
    ) -> int:
        """Cut what goes through the autoencoder; see :meth:`Model.cut_autoencoder`."""
        own = self._autoencoder
        own.is_sliced = own.is_sliced if slicing is None else slicing
        own.is_tiled = own.is_tiled if tiling is None else tiling
        own.is_circular = own.is_circular if circular is None else circular
        return own.tile * own.scale

    def preview(self, latents: Tensor) -> Tensor | None:
        """Ask the folder's tiny decoder, if it brings one; see :meth:`Model.preview`."""
        tiny = self.networks.get(PREVIEW_ROLE)
        return super().preview(latents) if tiny is None else tiny(latents=latents)[0][0].cpu()

    @cached_property
    def _preview(self) -> Tensor:
        found = read_preview(self.spec.path, self.spec.latent_channels)
        return (
            fit_preview(
                self._autoencoder.decode,
                self.spec.latent_channels,
                rows=max(12, self.spec.latent_channels // 4),
            )
            if found is None
            else found
        )

    def preview_matrix(self) -> Tensor:
        """Return the folder's own map, or one fitted to this autoencoder."""
        return self._preview
