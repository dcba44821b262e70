"""Plan: one image with everything resolved, before any tensor exists.

All defaults, clamps, seeds and refusals happen here, against the model's spec.
A plan can be printed, priced, cached and replayed. Two equal plans make the
same picture, and the digest of a plan covers every field by construction, so
nothing that changes a picture can be forgotten in a cache key.

Pictures that came with the request (a start image, masks, control images) are
in the plan by their digest; their bytes travel beside it.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mezzotint.plain import field_names
from mezzotint.request import Inpaint
from mezzotint.types import MAX_SEED, OutputFormat, Size

__all__ = [
    "ENLARGED",
    "OUTSIDE",
    "Adapters",
    "BatchKey",
    "Plan",
    "Planned",
    "PlannedControl",
    "PlannedEmbedding",
    "PlannedImagePrompt",
    "PlannedLora",
    "PlannedMember",
    "PlannedRegion",
    "PlannedVariation",
    "Techniques",
    "WalkPosition",
    "control_asset",
    "image_seed",
    "mask_asset",
    "prompt_asset",
    "reference_asset",
]

SCHEMA = 2
"""Goes into every digest; raised when the same plan means another picture."""

OUTSIDE = "outside"
"""Stands for the mask of an outpainting: the pixels that were added."""

ENLARGED = "enlarged"
"""Stands for the picture that a second pass starts from: what the first one drew."""

BatchKey = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLora:
    """A LoRA by name and content."""

    name: str
    digest: str
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedControl:
    """A ControlNet by name and content, its picture by content, its active steps."""

    model: str
    digest: str
    image: str
    scale: float
    start: float
    end: float
    preprocess: str | None

    def is_active(self, step: int, num_steps: int) -> bool:
        """Tell whether it acts at a step (from 1), by diffusers' rule for its range."""
        is_within = (step - 1) / num_steps >= self.start and step / num_steps <= self.end
        return is_within and self.scale != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedImagePrompt:
    """An IP-Adapter by name and content; its pictures by content."""

    model: str
    digest: str
    images: tuple[str, ...]
    scale: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEmbedding:
    """A textual inversion by name and content, and the word that stands for it."""

    name: str
    digest: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What is put on a model for some requests, by name and content.

    Scales and ranges are left out: images that differ in them share calls.

    Args:
        embeddings: (name, digest, token) of textual inversions.
        image_prompts: (name, digest) of IP-Adapters.
        loras: (name, digest) of LoRAs.
        controls: (name, digest) of ControlNets.
    """

    embeddings: tuple[tuple[str, str, str], ...] = ()
    image_prompts: tuple[tuple[str, str], ...] = ()
    loras: tuple[tuple[str, str], ...] = ()
    controls: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.embeddings or self.image_prompts or self.loras or self.controls)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRegion:
    """A regional prompt; ``mask`` is the digest of a picture."""

    prompt: str
    negative_prompt: str
    mask: str | None
    box: tuple[float, ...] | None
    weight: float
    feather: float
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedMember:
    """One member of an ensemble: a model by name and content, one weight per step.

    ``mask`` (the digest of a picture) or ``box`` says where it is asked, if not everywhere.
    """

    model: str
    digest: str
    weights: tuple[float, ...]
    mask: str | None = None
    box: tuple[float, ...] | None = None
    feather: float = 0.0

    @property
    def is_local(self) -> bool:
        """Whether it is asked about a part of the picture only."""
        return self.mask is not None or self.box is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkPosition:
    """Where on a walk the image stands; ``frame`` 0 is the start, ``frames - 1`` the end."""

    frame: int
    frames: int
    mode: str
    to: str | None
    to_seed: int | None
    space: str = "z"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedVariation:
    """The other seed, how far towards it, and the size the noise is drawn for, or None."""

    seed: int
    strength: float
    noise_size: Size | None


@dataclass(frozen=True, kw_only=True)
class Techniques:
    """What goes beyond prompt, seed and steps.

    Args:
        image: Digest of the picture to start from.
        strength: Share of the steps that are run on ``image``; 1 without one.
        mask: Digest of the mask of the part to repaint.
        image_references: Digests of the pictures that an edit model is handed, in order.
        controls: ControlNets.
        loras: LoRAs of this image alone.
        image_prompts: IP-Adapters and their pictures.
        embeddings: Textual inversions.
        regions: Regional prompts.
        ensemble: Denoisers that answer together with the model.
        walk: Position on a walk.
        guidance_rescale: Strength phi of the standard-deviation rescale.
        distilled_guidance: Guidance that the network takes as an input.
        truncation: Truncation psi of a GAN.
        class_label: Class of a class-conditional model.
        upscale: Factor, name and content digest of the enlargement after decoding.
        inpaint: How the mask is read and what comes of it; None without a mask.
        outpaint: Pixels added on the left, top, right and bottom, or None.
        variation: Another seed's share of the noise.
        tiling: Whether the picture's edges meet: circular padding in every convolution.
        upscaler: Of a second pass: what enlarged the first for it, a name and its digest.
        first_steps: Of a second pass: the steps of the first, from which edits of a
            prompt count on.
    """

    image: str | None = None
    strength: float = 1.0
    mask: str | None = None
    image_references: tuple[str, ...] = ()
    controls: tuple[PlannedControl, ...] = ()
    loras: tuple[PlannedLora, ...] = ()
    image_prompts: tuple[PlannedImagePrompt, ...] = ()
    embeddings: tuple[PlannedEmbedding, ...] = ()
    regions: tuple[PlannedRegion, ...] = ()
    ensemble: tuple[PlannedMember, ...] = ()
    walk: WalkPosition | None = None
    guidance_rescale: float = 0.0
    distilled_guidance: float | None = None
    truncation: float = 1.0
    class_label: int | None = None
    upscale: tuple[float, str, str] | None = None
    inpaint: Inpaint | None = None
    outpaint: tuple[int, int, int, int] | None = None
    variation: PlannedVariation | None = None
    tiling: bool = False
    upscaler: tuple[str, str] = ("", "")
    first_steps: int = 0

    @cached_property
    def adapters(self) -> Adapters:
        """What has to be put on the model."""
        return Adapters(
            embeddings=tuple((e.name, e.digest, e.token) for e in self.embeddings),
            image_prompts=tuple((p.model, p.digest) for p in self.image_prompts),
            loras=tuple((lora.name, lora.digest) for lora in self.loras),
            controls=tuple((control.model, control.digest) for control in self.controls),
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One image, everything resolved.

    Args:
        model: Name of the model.
        model_digest: Content of the model.
        environment: Device, dtype and versions that arithmetic depends on.
        prompt: Text; "" where the model takes none.
        negative_prompt: Text of the unconditional rows; "" where there are none.
        prompt_dialect: How weights in the text are read.
        size: Pixels.
        seed: Seed of this image.
        num_inference_steps: Steps of the whole schedule (0 for a GAN).
        scheduler: Name of the scheduler.
        sigma_schedule: Name of the sigma schedule, or None for the scheduler's own.
        steps: For each network evaluation the step it belongs to, from 1, counted
            from the first step that is run.
        rows: For each network evaluation how many rows the image sends.
        guidance: Guidance scale of each step that is run.
        techniques: What goes beyond these.
        output: Format, quality and whether the recipe goes into the file.
        reproducibility: ``exact``, ``stable`` or ``turbo``.
        reused: For each evaluation whether it reuses what the one before found; () for
            none does.
        shortcuts: What ``turbo`` gives up, one phrase each.
        second: The pass over the enlarged picture, or None.
    """

    model: str
    model_digest: str
    environment: str
    prompt: str
    negative_prompt: str
    prompt_dialect: str
    size: Size
    seed: int
    num_inference_steps: int
    scheduler: str
    sigma_schedule: str | None
    steps: tuple[int, ...]
    rows: tuple[int, ...]
    guidance: tuple[float, ...]
    techniques: Techniques
    output: tuple[OutputFormat, int, bool, bool]
    reproducibility: str
    reused: tuple[bool, ...] = ()
    shortcuts: tuple[str, ...] = ()
    second: "Plan | None" = None

    @cached_property
    def batch_key(self) -> BatchKey:
        """What changes the forward pass; the conditioning's shape joins it after encoding."""
        t = self.techniques
        return (
            self.model_digest,
            self.size,
            self.reproducibility,
            self.shortcuts,
            t.adapters.loras,
            t.adapters.controls,
            tuple(member.digest for member in t.ensemble),
            t.tiling,
            t.adapters.image_prompts,
        )

    @property
    def is_alone(self) -> bool:
        """Whether a pipeline that runs whole takes its steps: one picture at a time."""
        return bool(self.rows) and not self.scheduler

    @property
    def is_turbo(self) -> bool:
        """Whether the fast copy of the model draws it."""
        return bool(self.shortcuts)

    @property
    def model_calls(self) -> int:
        """Rows that networks compute for this image: exact, known before it runs."""
        own = sum(self.rows) + self._own_control_calls
        return (own or 1) + (self.second.model_calls if self.second else 0)

    @property
    def ends_in_latents(self) -> bool:
        """Whether a second pass takes this one's latents, so that nothing is decoded."""
        return self.second is not None and self.second.techniques.upscaler[0] == "latent"

    @property
    def all_steps(self) -> int:
        """Steps that are run in all passes."""
        return self.num_steps + (self.second.num_steps if self.second else 0)

    def with_seed(self, seed: int) -> "Plan":
        """Return the same plan with another seed, in all its passes."""
        second = self.second.with_seed(seed) if self.second else None
        return dataclasses.replace(self, seed=seed, second=second)

    @property
    def control_calls(self) -> int:
        """Rows that ControlNets compute in all passes, part of :attr:`model_calls`."""
        return self._own_control_calls + (self.second.control_calls if self.second else 0)

    @property
    def _own_control_calls(self) -> int:
        """Rows that ControlNets compute in this pass."""
        return sum(self.control_rows(k) for k in range(len(self.rows)))

    def control_rows(self, evaluation: int) -> int:
        """Return the rows that ControlNets compute at a network evaluation, from 0."""
        step = self.steps[evaluation] if self.techniques.controls else 0
        active = sum(c.is_active(step, self.num_steps) for c in self.techniques.controls)
        return active * self.rows[evaluation]

    @property
    def num_steps(self) -> int:
        """Steps that are run; fewer than ``num_inference_steps`` on a start image."""
        return len(self.guidance)

    @property
    def skipped_steps(self) -> int:
        """Steps at the noisy end of the schedule that a start image leaves out."""
        return self.num_inference_steps - self.num_steps

    @cached_property
    def canonical(self) -> str:
        """The one JSON text of this plan; every field is in it by construction."""
        return json.dumps(
            {"schema": SCHEMA, **to_plain(self)}, separators=(",", ":"), ensure_ascii=False
        )

    @cached_property
    def digest(self) -> str:
        """The sha256 of :attr:`canonical`, 64 hex digits: the key of the result cache."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the plan as plain data for people, logs and answers."""
        plain = to_plain(self)
        plain["model_calls"] = self.model_calls
        if self.techniques.controls:
            plain["control_calls"] = self.control_calls
        scales = set(self.guidance)
        plain["guidance_scale"] = scales.pop() if len(scales) == 1 else list(self.guidance)
        plain["width"], plain["height"] = self.size
        return plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What planning a request gave: one plan per image, and what was changed."""

    plans: tuple[Plan, ...]
    warnings: tuple[str, ...] = ()


def control_asset(control: PlannedControl, size: Size) -> str:
    """Return the name of a prepared control picture among the assets of a request.

    The same file may be the start image, come with another preprocessor, and serve
    passes of several sizes.
    """
    return f"control {control.preprocess or 'none'} {size} {control.image}"


def mask_asset(mask: str) -> str:
    """Return the name of a region's or a member's mask among the assets of a request.

    The same file may be the mask of the part to repaint, blurred and turned round.
    """
    return f"mask {mask}"


def prompt_asset(place: int, image: str) -> str:
    """Return the name of a picture of an image prompt among the assets of a request.

    Args:
        place: Which of the request's image prompts: each looks at its own size.
        image: Digest of the picture.
    """
    return f"prompt {place} {image}"


def reference_asset(image: str) -> str:
    """Return the name of a picture of ``image_references`` among the assets of a request.

    Args:
        image: Digest of the picture.
    """
    return f"reference {image}"


def to_plain(value: Any) -> Any:
    """Turn nested dataclasses and tuples into plain data, every field included.

    Fields that came later are left out while they are empty: a plan without them keeps
    the digest that it had.
    """
    kind = type(value)
    if kind in _LEAVES:
        return value
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    if dataclasses.is_dataclass(kind):
        plain = {name: to_plain(getattr(value, name)) for name in field_names(kind)}
        return {k: v for k, v in plain.items() if v or k not in _LATER}
    return value


_LATER = frozenset(("image_references",))
_LEAVES = frozenset((str, int, float, bool, type(None)))


def image_seed(seed: int, index: int) -> int:
    """Return the seed of image ``index``: seeds count up and wrap at 2**64."""
    return (seed + index) % (MAX_SEED + 1)
