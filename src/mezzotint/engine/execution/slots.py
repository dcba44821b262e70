"""Slots: everything one image holds in tensors while it runs.

A slot's solver state is explicit: registers of latents for the native solvers,
a request-local scheduler object for any other. Nothing in it is shared with
another image.

Dimensions: K registers, then the shape of one image's latents.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.engine.execution.operators import Operator
from mezzotint.engine.execution.solving import ForeignSolver, NativeSolver
from mezzotint.models.base import Conditioning, Model
from mezzotint.models.stepped_call import SteppedCall
from mezzotint.planning.plan import Plan
from mezzotint.sampling.latents import blend_inpainting

__all__ = ["KeptPart", "Slot"]


@dataclass(frozen=True, slots=True)
class KeptPart:
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
        return blend_inpainting(
            latents,
            self.clean,
            self.noise,
            self.mask,
            torch.tensor([sigma], dtype=torch.float64, device=latents.device),
            frame="flow" if self.is_flow else "ve",
        )


@dataclass(slots=True)
class Slot:
    """One running image.

    Args:
        plan: What is made.
        model: Who makes it; pinned in memory until the slot is released.
        members: Whose denoisers are asked: the model's own, or an ensemble's.
        pin: Lets go of the model.
        conditioning: Of the prompt, for the decoder.
        latents: What the decoder gets in the end. Shape (1, ...).
        operator: Rows and guidance; None for a GAN.
        solver: The way to clean latents; None for a GAN.
        denoised: The last estimate, for previews.
        inpainting: The part that stays, or None.
        deep: Deep features of the last whole evaluation, for ``turbo``. Shape (1, ...).
        change: What the prompt changed in its prediction, for ``turbo``. Shape (1, ...).
        run: The run of a pipeline that takes its own steps, or None.
    """

    plan: Plan
    model: Model
    pin: contextlib.ExitStack
    conditioning: Conditioning
    latents: Tensor
    members: tuple[Model, ...] = ()
    operator: Operator | None = None
    solver: NativeSolver | ForeignSolver | None = None
    denoised: Tensor | None = None
    inpainting: KeptPart | None = None
    deep: Tensor | None = None
    change: Tensor | None = None
    run: SteppedCall[Tensor] | None = None
