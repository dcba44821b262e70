"""Denoisers: what a network says, in one convention.

Everything above this file speaks of ``denoised`` only: the estimate of the
clean latents given noisy ones. What a network really predicts (epsilon, v,
sample, flow) is converted here and nowhere else.

Conventions:
    Variance-exploding frame: ``latents = clean + sigma * noise`` (Karras et al.
    2022, arXiv:2206.00364). A variance-preserving state ``x`` with cumulative
    ``alpha_bar`` is the same state divided by ``sqrt(alpha_bar)``, at
    ``sigma = sqrt((1 - alpha_bar) / alpha_bar)``.
    Flow frame: ``latents = (1 - sigma) * clean + sigma * noise``, sigma in [0, 1].

Dimensions: B images, then any rank.
"""

from typing import Any, Protocol

from torch import Tensor

__all__ = ["Denoiser"]


class Denoiser(Protocol):
    """Anything that maps noisy latents and their noise level to clean ones."""

    def __call__(self, latents: Tensor, sigma: Tensor, conditioning: Any = None) -> Tensor:
        """Estimate the clean latents.

        Args:
            latents: Noisy latents in the model's frame. Shape (B, ...), float32.
            sigma: Noise level of each image. Shape (B,), > 0.
            conditioning: What the model's ``encode`` returned, batched to B rows.

        Returns:
            The estimate of the clean latents. Same shape, float32.
        """
        ...
