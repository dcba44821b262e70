"""Slots: everything one image holds in tensors while it runs.

A slot's solver state is explicit: registers of latents for the native solvers,
a request-local scheduler object for any other. Nothing in it is shared with
another image.

Dimensions: K registers, then the shape of one image's latents.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from mezzotint.engine.operators import Operator
from mezzotint.engine.plan import Plan
from mezzotint.models.base import Conditioning, Model

__all__ = ["Inpainting", "Slot", "Solver"]


class Solver(Protocol):
    """One image's way from noise to clean, evaluation by evaluation.

    Attributes:
        latents: What the network sees next. Shape (1, ...), float32.
    """

    latents: Tensor

    @property
    def is_done(self) -> bool:
        """Whether no evaluation is left."""
        ...

    @property
    def sigma(self) -> float:
        """Noise level of the next evaluation; 0 after the last."""
        ...

    @property
    def timestep(self) -> float:
        """What the network is told about the noise level."""
        ...

    def blend(self, latents: Tensor) -> None:
        """Replace what the network sees next, e.g. outside a mask."""
        ...


@dataclass(frozen=True, slots=True)
class Inpainting:
    """The part of a picture that stays.

    Args:
        mask: 1 where the picture is repainted. Shape (1, 1, h, w), float32.
        clean: Latents of the picture. Shape (1, C, h, w).
        noise: The noise the image started from. Same shape.
        is_flow: Whether latents live in the flow frame.
    """

    mask: Tensor
    clean: Tensor
    noise: Tensor
    is_flow: bool

    def apply(self, latents: Tensor, sigma: float) -> Tensor:
        """Put the picture back, as noisy as ``sigma``, where the mask is 0."""
        if sigma == 0:
            kept = self.clean
        elif self.is_flow:
            kept = (1 - sigma) * self.clean + sigma * self.noise
        else:
            kept = self.clean + sigma * self.noise
        return self.mask * latents + (1 - self.mask) * kept


@dataclass(slots=True)
class Slot:
    """One running image.

    Args:
        plan: What is made.
        model: Who makes it; pinned in memory until the slot is released.
        pin: Lets go of the model.
        conditioning: Of the prompt, for the decoder.
        operator: Rows and guidance; None for a GAN.
        solver: The way to clean latents; None for a GAN.
        denoised: The last estimate, for previews.
        inpainting: The part that stays, or None.
    """

    plan: Plan
    model: Model
    pin: contextlib.ExitStack
    conditioning: Conditioning
    latents: Tensor
    operator: Operator | None = None
    solver: Any = None
    denoised: Tensor | None = None
    inpainting: Inpainting | None = None
    extras: Mapping[str, Any] = field(default_factory=dict[str, Any])


def draw_noise(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw one image's noise on the CPU in float32, then move it. Shape (1, *shape)."""
    noise = torch.randn((1, *shape), generator=generator, dtype=torch.float32)
    return noise.to(device)
