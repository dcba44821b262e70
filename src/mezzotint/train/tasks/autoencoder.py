"""Autoencoder: the latent space that a latent diffusion model lives in.

The loss is the error of the picture, the error of its differences (so that
edges stay sharp without a perceptual network), and a weak pull of the latents
towards a unit normal. The scaling factor that later runs divide by is measured
on the data at export.

Dimensions: B pictures, C latent channels, h and w latent rows and columns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.errors import InvalidRequest
from mezzotint.models.families.runs import RUN_FILE
from mezzotint.train.config.config import TrainConfig
from mezzotint.train.data.dataset import Dataset
from mezzotint.train.tasks.base import Batch

__all__ = ["AutoencoderTask", "reconstruction_error"]

_MEASURED = 256  # pictures whose latents set the scaling factor


def reconstruction_error(
    made: Tensor, wanted: Tensor, *, gradient_weight: float, mean_squared: bool
) -> Tensor:
    """Return the mean error of pictures and of their differences. A scalar."""

    def error(difference: Tensor) -> Tensor:
        return (difference**2 if mean_squared else difference.abs()).mean()

    total = error(made - wanted)
    if gradient_weight:
        across = error(made.diff(dim=-1) - wanted.diff(dim=-1))
        down = error(made.diff(dim=-2) - wanted.diff(dim=-2))
        total = total + gradient_weight * (across + down)
    return total


class AutoencoderTask:
    """Trains an ``AutoencoderKL``; see :class:`mezzotint.train.tasks.base.Task`.

    Raises:
        InvalidRequest: If the data are no pictures of fitting sides.
    """

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        if data.kind != "pixels":
            raise InvalidRequest(
                f'kind "autoencoder" learns from pictures, got {data.kind}', field="kind"
            )
        self._config, self._data = config, data
        widths = config.network.channels
        factor = 2 ** (len(widths) - 1)
        for side in data.shape[1:]:
            if side % factor:
                raise InvalidRequest(
                    f"data.resolution must be a multiple of {factor} px for this autoencoder, "
                    f"got {side}",
                    field="data.resolution",
                    value=side,
                )
        self.modules = nn.ModuleDict({"vae": self._build(data.shape)})
        self.groups: Mapping[str, Sequence[str]] = {"autoencoder": ("vae",)}
        self.rates: Mapping[str, float] = {"autoencoder": 1.0}

    def _build(self, shape: tuple[int, ...]) -> nn.Module:
        """Build the autoencoder at random weights."""
        import diffusers

        kinds: Any = diffusers  # loads its names when they are asked for

        network = self._config.network
        return kinds.AutoencoderKL(
            in_channels=shape[0],
            out_channels=shape[0],
            down_block_types=("DownEncoderBlock2D",) * len(network.channels),
            up_block_types=("UpDecoderBlock2D",) * len(network.channels),
            block_out_channels=tuple(network.channels),
            layers_per_block=network.layers,
            latent_channels=self._config.autoencoder.latent_channels,
            norm_num_groups=min(32, math.gcd(*network.channels)),
            sample_size=shape[1],
            mid_block_add_attention=bool(network.attention),
        )

    def frozen(self) -> Sequence[nn.Module]:
        """Nothing only helps."""
        return ()

    def loss(
        self,
        group: str,
        networks: Mapping[str, Any],
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the error of drawn reconstructions and the pull of the latents."""
        options = self._config.autoencoder
        vae: Any = self.modules["vae"]
        mean, log_variance = _posterior(vae, batch.samples)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        made = vae.decode(mean + (0.5 * log_variance).exp() * noise).sample
        error = reconstruction_error(
            made,
            batch.samples,
            gradient_weight=options.gradient_weight,
            mean_squared=options.mean_squared,
        )
        pull = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
        return error + options.kl_weight * pull, {"error": error.detach(), "kl": pull.detach()}

    def held_out_loss(
        self, networks: Mapping[str, Any], batch: Batch, generator: torch.Generator
    ) -> Tensor:
        """Return the mean absolute error of reconstructions from the latents' means."""
        vae: Any = self.modules["vae"]
        mean, _ = _posterior(vae, batch.samples)
        return (vae.decode(mean).sample - batch.samples).abs().mean()

    def after_step(self, step: int) -> None:
        """Nothing follows a step."""

    def write_model(
        self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]
    ) -> None:
        """Refuse: an autoencoder draws nothing of its own.

        Raises:
            InvalidRequest: Always; says how to use the run.
        """
        raise InvalidRequest(
            'a run of kind "autoencoder" is a latent space, not a model that draws; name it as '
            "network.vae of another run",
            field="kind",
        )

    @torch.no_grad()
    def measure_scale(self, vae: Any) -> float:
        """Return 1 over the deviation of the latents of the first pictures."""
        device = next(vae.parameters()).device
        first = range(min(_MEASURED, len(self._data.buckets)))
        same = [k for k in first if self._data.buckets[k] == self._data.buckets[0]]
        means = [_posterior(vae, self._data.read([k]).to(device))[0] for k in same]
        return 1.0 / max(float(torch.cat(means).std()), 1e-6)

    def export(self, folder: Path, modules: nn.ModuleDict, training: Mapping[str, Any]) -> None:
        """Write the autoencoder with its scaling factor."""
        vae: Any = modules["vae"]
        vae.register_to_config(scaling_factor=self.measure_scale(vae))
        vae.save_pretrained(str(folder / "vae"), safe_serialization=True)
        about = {
            "format": 1,
            "family": "autoencoder",
            "licence": self._config.licence,
            "training": training,
        }
        (folder / RUN_FILE).write_text(json.dumps(about, indent=1), "utf-8")


def _posterior(vae: Any, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and logarithm of the variance of the latents. Shapes (B, C, h, w)."""
    found = vae.encode(samples).latent_dist
    return found.mean, found.logvar
