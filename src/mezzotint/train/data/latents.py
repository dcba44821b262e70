"""Latent space: pictures through a frozen autoencoder, with its own constants.

A network that learned latents scaled by ``scaling_factor`` must be decoded
through the same factor, so both directions live beside each other.

Dimensions: B pictures, C latent channels, h and w latent rows and columns.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest

__all__ = ["LatentSpace"]


class LatentSpace:
    """A frozen autoencoder.

    Args:
        folder: A model folder with ``vae``, an autoencoder run, or the folder
            of an ``AutoencoderKL`` itself.

    Raises:
        InvalidRequest: If there is no autoencoder.
    """

    def __init__(self, folder: Path) -> None:
        import diffusers

        kinds: Any = diffusers  # loads its names when they are asked for
        place = folder / "vae" if (folder / "vae").is_dir() else folder
        try:
            if not (place / "config.json").is_file():
                raise OSError("there is no config.json")
            self.vae: Any = kinds.AutoencoderKL.from_pretrained(
                str(place),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
            )
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"network.vae {folder} holds no autoencoder: {str(error).splitlines()[0]}",
                field="network.vae",
                value=str(folder),
            ) from None
        self.vae.eval().requires_grad_(False)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latents of a picture of shape (C, H, W).

        Raises:
            InvalidRequest: If the sides are no multiples of the factor.
        """
        for side in shape[1:]:
            if side % self.factor:
                raise InvalidRequest(
                    f"data.resolution must be a multiple of {self.factor} px for this "
                    f"autoencoder, got {side}",
                    field="data.resolution",
                    value=side,
                )
        if shape[0] != self.vae.config.in_channels:
            raise InvalidRequest(
                f"data.channels must be {self.vae.config.in_channels} for this autoencoder, got "
                f"{shape[0]}",
                field="data.channels",
            )
        return (
            self.vae.config.latent_channels,
            shape[1] // self.factor,
            shape[2] // self.factor,
        )

    @torch.no_grad()
    def encode(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """Draw scaled latents of pictures. (B, 3, H, W) in [-1, 1] -> (B, C, h, w)."""
        config = self.vae.config
        found = self.vae.encode(pictures.to(self.vae.dtype)).latent_dist
        noise = torch.randn(found.mean.shape, generator=generator).to(found.mean)
        latents = found.mean + found.std * noise
        shift = getattr(config, "shift_factor", None) or 0.0
        return (latents.float() - shift) * config.scaling_factor
