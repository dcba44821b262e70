"""Mixtures: denoisers that are known exactly, for tests and the laboratory.

If the data are a mixture of isotropic Gaussians, the best estimate of the clean
data given noisy data is a formula. Whatever a sampler gets wrong on it is the
sampler's own error. Guidance, regions and ensembles have exact answers too.

Theory: for components of weight w_k, mean m_k and deviation s_k, data noised to
``x = a c + sigma noise`` (a is 1, or 1 - sigma in the flow frame) is a mixture again, of
means a m_k and variances v_k = a^2 s_k^2 + sigma^2. Given x, component k has the
probability ``w_k N(x; a m_k, v_k)``, normalised over k, and a clean mean of
``m_k + a s_k^2 / v_k (x - a m_k)``; their mean is the best estimate.

Dimensions: B images, K components, then the shape of one image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mezzotint.errors import InvalidRequest

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of isotropic Gaussians and its exact denoiser.

    Args:
        means: Mean of each component. Shape (K, ...).
        deviations: Standard deviation of each component, >= 0.
        weights: Weight of each component, > 0; normalised.
        frame: ``"ve"`` or ``"flow"``; what noisy data are.
    """

    means: Tensor
    deviations: tuple[float, ...]
    weights: tuple[float, ...]
    frame: str = "ve"

    def __post_init__(self) -> None:
        count = len(self.means)
        if not len(self.deviations) == len(self.weights) == count or not count:
            raise InvalidRequest(
                f"a mixture needs one mean, deviation and weight per component, got {count}, "
                f"{len(self.deviations)} and {len(self.weights)}"
            )
        if min(self.weights) <= 0 or min(self.deviations) < 0:
            raise InvalidRequest("weights must be > 0 and deviations >= 0")

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Any = None) -> Tensor:
        """Return the posterior mean of the clean data.

        Args:
            latents: Noisy data. Shape (B, ...).
            sigma: Noise level of each image. Shape (B,).
            conditioning: Ignored; a mixture knows no words.

        Returns:
            Shape (B, ...), in the type of ``latents``.
        """
        x, level = latents.double(), sigma.double().reshape(-1, 1)
        keep = 1 - level if self.frame == "flow" else torch.ones_like(level)
        posterior = self._responsibilities(x, keep, level)
        flat, means = x.flatten(1), self.means.double().flatten(1)
        spread = torch.tensor(self.deviations, dtype=torch.float64)[None] ** 2
        total = (keep**2) * spread + level**2
        gain = keep * spread / total
        # mean of component k given x: m + gain (x - keep m)
        estimates = means[None] + gain[..., None] * (flat[:, None] - keep[..., None] * means[None])
        mixed = (posterior[..., None] * estimates).sum(1)
        return mixed.reshape(latents.shape).to(latents.dtype)

    def _responsibilities(self, x: Tensor, keep: Tensor, level: Tensor) -> Tensor:
        """Return the probability of each component given noisy data. Shape (B, K)."""
        flat, means = x.flatten(1), self.means.double().flatten(1)
        spread = torch.tensor(self.deviations, dtype=torch.float64)[None] ** 2
        variance = (keep**2) * spread + level**2
        distance = ((flat[:, None] - keep[..., None] * means[None]) ** 2).sum(-1)
        prior = torch.log(torch.tensor(self.weights, dtype=torch.float64))
        logits = prior - distance / (2 * variance) - flat.shape[1] / 2 * torch.log(variance)
        return logits.softmax(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw clean data, for comparison. Shape (count, ...), float32."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        chosen = torch.multinomial(weights / weights.sum(), count, True, generator=generator)
        noise = torch.randn((count, *self.means.shape[1:]), generator=generator)
        spread = torch.tensor(self.deviations)[chosen].reshape(-1, *([1] * (noise.ndim - 1)))
        return self.means[chosen].float() + spread * noise

    @classmethod
    def gaussian(cls, deviation: float, shape: Sequence[int] = (1,)) -> "GaussianMixture":
        """Return one Gaussian around 0, e.g. for orders of convergence."""
        if not math.isfinite(deviation):
            raise InvalidRequest(f"deviation must be finite, got {deviation}")
        return cls(torch.zeros((1, *shape)), (deviation,), (1.0,))
