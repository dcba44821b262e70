"""State: one image's life inside the engine, without tensors.

A state is replaced, never edited. It is born waiting, becomes running when its
tensors exist, and leaves the engine with exactly one ending.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from mezzotint.planning.plan import Plan
from mezzotint.types import StageTimings

__all__ = [
    "Claim",
    "EngineEvent",
    "ImageCancelled",
    "ImageDone",
    "ImageFailed",
    "ImageId",
    "ImageStarted",
    "ImageState",
    "ImageStepped",
    "StepBatch",
]


Kind = Literal["step", "reuse", "decode"]
"""Kinds of device work."""


class ImageId(NamedTuple):
    """Which image: its request, its position there, and which attempt at it."""

    request: str
    index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride] - no sequence to look in
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What an image may claim of the device.

    Args:
        client: Who asked; clients share the device evenly.
        priority: Class above all sharing, higher first.
        deadline_s: Clock time by which it must be done, or infinity.
        arrived_s: Clock time at which it was submitted.
        due_s: What decides between two images of one client, earliest first: when its
            request arrived plus a multiple of what the request takes alone.
        preview_every: Steps between previews, 0 for none.
        preview_at: Further steps, from 1, after which a preview is wanted.
    """

    client: str = ""
    priority: int = 0
    deadline_s: float = math.inf
    arrived_s: float = 0.0
    due_s: float = 0.0
    preview_every: int = 0
    preview_at: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageState:
    """One image that the engine holds.

    Args:
        id: Which image.
        plan: What to make.
        claim: What it may claim.
        status: ``waiting`` has no tensors, ``running`` has.
        evaluation: Network evaluations done.
        key: What must be equal inside one network call; known once encoded.
        timings: Where its time went so far.
        warnings: What was changed on the way, one sentence each.
    """

    id: ImageId
    plan: Plan
    claim: Claim
    status: Literal["waiting", "running"] = "waiting"
    evaluation: int = 0
    key: Hashable = None
    timings: StageTimings = field(default_factory=StageTimings)
    warnings: tuple[str, ...] = ()

    @property
    def is_denoised(self) -> bool:
        """Whether only the decoder is left."""
        return self.evaluation >= len(self.plan.rows)

    @property
    def rows(self) -> int:
        """Rows of the next network call for this image; 1 for the decoder."""
        return 1 if self.is_denoised else self.plan.rows[self.evaluation]

    @property
    def step(self) -> int:
        """Solver steps that are finished, 0 at the start."""
        if self.evaluation == 0:
            return 0
        done = self.plan.steps[self.evaluation - 1]
        same = not self.is_denoised and self.plan.steps[self.evaluation] == done
        return done - 1 if same else done

    @property
    def kind(self) -> Kind:
        """What the image needs next."""
        if self.is_denoised:
            return "decode"
        is_reused = bool(self.plan.reused) and self.plan.reused[self.evaluation]
        return "reuse" if is_reused else "step"

    def spend(self, **seconds: float) -> "ImageState":
        """Return the state with more time (or model calls) on its account."""
        timings = self.timings
        values = {name: getattr(timings, name) + value for name, value in seconds.items()}
        if "model_calls" in values:
            values["model_calls"] = int(values["model_calls"])
        return replace(self, timings=replace(timings, **values))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One piece of device work: equal key, equal kind.

    Args:
        kind: ``step`` calls the denoiser, ``reuse`` only its outer part (or one row of
            two), ``decode`` the decoder (a GAN's whole network).
        ids: Whose turn it is, in row order.
        key: What is equal among them.
        bucket: Rows of the call, padding included.
        wanted: Rows of this kind that the clients in the call have running: what a larger
            call could take.
        limit_s: Seconds that a call of several images may take here, for the sake of
            clients who may come back.
    """

    kind: Kind
    ids: tuple[ImageId, ...]
    key: Hashable
    bucket: int
    wanted: int = 0
    limit_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStarted:
    """The image left the queue."""

    id: ImageId


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStepped:
    """The image took one solver step.

    ``preview`` is a float32 array of shape (3, h, w), about [-1, 1], or None.
    """

    id: ImageId
    step: int
    steps: int
    preview: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDone:
    """The image is finished.

    ``picture`` is a float32 array of shape (3, H, W), about [-1, 1], not rounded yet; or
    latents of shape (C, h, w) where the plan ends in them.
    """

    id: ImageId
    picture: Any
    timings: StageTimings
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFailed:
    """The image failed, alone, for this reason."""

    id: ImageId
    error: Exception


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCancelled:
    """The image was cancelled at somebody's wish."""

    id: ImageId


EngineEvent = ImageStarted | ImageStepped | ImageDone | ImageFailed | ImageCancelled
